"""Marks in place of the texts of a conversation, to find where a chat template wrote each text.

A mark stands for the core of a text; the whitespace around the core stays, so that a template
trims both alike.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amnesia_bench.data.chat import is_tool_response, last_query
from amnesia_bench.data.conversation import DroppedRow, Message, Reason

_OPEN_RESPONSE, _CLOSE_RESPONSE = "<tool_response>", "</tool_response>"


class NotWritten(DroppedRow):
    """The tokenizer's template cannot write a conversation, or writes it differently."""

    def __init__(self, detail: str, reason: Reason = Reason.NOT_WRITTEN) -> None:
        super().__init__(reason, detail)


@dataclass(frozen=True)
class TextMark:
    """A mark: the turn whose `part` it stands for, and the core of that text."""

    text: str
    turn: int
    part: str
    core: str


class Marks:
    """Makes the marks of one conversation."""

    def __init__(self) -> None:
        self.made: list[TextMark] = []

    def put(self, turn: int, part: str, text: str) -> str:
        """Return a text with a mark instead of its core."""
        lead, tail = "", ""
        if part == "user message" and is_tool_response(text):
            lead, tail = _OPEN_RESPONSE, _CLOSE_RESPONSE
            text = text[len(lead) : -len(tail)]
        core = text.strip()
        begin = text.index(core)
        mark = TextMark(f"zq{len(self.made)}qz", turn, part, core)
        self.made.append(mark)
        return f"{lead}{text[:begin]}{mark.text}{text[begin + len(core) :]}{tail}"


@dataclass(frozen=True)
class PlacedMark:
    """A mark, and from where to where it lies in the scaffold."""

    begin: int
    end: int
    mark: TextMark


class Scaffold:
    """What a template wrote of a conversation with marks: `text`, and its marks in order."""

    def __init__(self, text: str, marks: Sequence[TextMark], messages: Sequence[Message]) -> None:
        """Find the marks.

        Raises:
            NotWritten: one is missing, and is not the chain of an answer to an earlier question,
                which templates leave out on purpose; or one occurs twice.
        """
        self.text = text
        placed = []
        query = last_query(messages)
        for mark in marks:
            times = text.count(mark.text)
            if times == 1:
                begin = text.index(mark.text)
                placed.append(PlacedMark(begin, begin + len(mark.text), mark))
            elif times or mark.part != "reasoning" or mark.turn > query:
                does = "writes twice" if times else "leaves out"
                raise NotWritten(f"it {does} the {mark.part} of messages[{mark.turn}]")
        self.placed = sorted(placed, key=lambda each: each.begin)

    def limit(self, i: int) -> int:
        """Return where the mark after the `i`-th begins, or the text ends."""
        return self.placed[i + 1].begin if i + 1 < len(self.placed) else len(self.text)

    def first(self, tokens: frozenset[str], i: int) -> tuple[int, str] | None:
        """Return where the first of some tokens after the `i`-th mark begins, and which it is."""
        begin, end = self.placed[i].end, self.limit(i)
        places = [(self.text.find(token, begin, end), -len(token), token) for token in tokens]
        found = [each for each in places if each[0] >= 0]
        return (min(found)[0], min(found)[2]) if found else None

    def filled(self, whole: str) -> Filled:
        """Put the texts in for their marks.

        Args:
            whole: what the template wrote of the conversation itself.

        Raises:
            NotWritten: the result is not `whole`; the template changes a text.
        """
        begins, moved, at, done = [0], [0], 0, 0
        for i, each in enumerate(self.placed):
            piece = self.text[done : each.begin]
            at, done = at + len(piece), each.end
            following = self.text[done : self.limit(i)]
            for text in _variants(each.mark):
                if whole.startswith(text + following, at):
                    break
            else:
                raise NotWritten(f"it changes the {each.mark.part} of messages[{each.mark.turn}]")
            at += len(text)
            begins.append(done)
            moved.append(at - done)
        before = self.text[: self.limit(-1)]
        if not whole.startswith(before) or len(whole) - at != len(self.text) - done:
            raise NotWritten("it depends on what the messages say")
        return Filled(begins, moved)


@dataclass(frozen=True)
class Filled:
    """Where the places of a scaffold lie once the texts are in."""

    begins: list[int]
    moved: list[int]

    def place(self, place: int) -> int:
        """Return where a place outside of marks has moved to."""
        return place + self.moved[bisect_right(self.begins, place) - 1]


def _variants(mark: TextMark) -> Iterator[str]:
    """Yield how a template may write a text: as it is, or the result of a tool inside JSON."""
    yield mark.core
    if mark.part == "tool message":
        yield json.dumps(mark.core, ensure_ascii=False)[1:-1]
