"""Replace the texts of a conversation with marks, to locate each text in a template's output.

A mark replaces the core of a text. The whitespace around the core stays, so a template trims mark
and text alike.
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
    """The tokenizer's template cannot render a conversation, or renders it differently."""

    def __init__(self, detail: str, reason: Reason = Reason.NOT_WRITTEN) -> None:
        super().__init__(reason, detail)


@dataclass(frozen=True)
class TextMark:
    """A mark `text` that replaces `core`, the stripped text of one `part` of a turn."""

    text: str
    turn: int
    part: str
    core: str


class Marks:
    """Creates the marks of one conversation."""

    def __init__(self) -> None:
        self.made: list[TextMark] = []

    def put(self, turn: int, part: str, text: str) -> str:
        """Return a text whose core is replaced by a new mark."""
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
    """A mark, and its position `begin` to `end` in the scaffold."""

    begin: int
    end: int
    mark: TextMark


class Scaffold:
    """A template's output for a conversation with marks: `text`, and its marks in order."""

    def __init__(self, text: str, marks: Sequence[TextMark], messages: Sequence[Message]) -> None:
        """Locate the marks.

        Raises:
            NotWritten: a mark occurs twice or is missing. Only the chain of an answer to an earlier
                question may be missing, since templates omit those on purpose.
        """
        self.text = text
        placed = []
        query = last_query(messages)
        for mark in marks:
            count = text.count(mark.text)
            if count == 1:
                begin = text.index(mark.text)
                placed.append(PlacedMark(begin, begin + len(mark.text), mark))
            elif count or mark.part != "reasoning" or mark.turn > query:
                action = "repeats" if count else "omits"
                raise NotWritten(f"it {action} the {mark.part} of messages[{mark.turn}]")
        self.placed = sorted(placed, key=lambda placement: placement.begin)

    def limit(self, i: int) -> int:
        """Return the position where the mark after the `i`-th begins, or else the text ends."""
        return self.placed[i + 1].begin if i + 1 < len(self.placed) else len(self.text)

    def first(self, tokens: frozenset[str], i: int) -> tuple[int, str] | None:
        """Return position and text of the first of `tokens` after the `i`-th mark."""
        begin, end = self.placed[i].end, self.limit(i)
        positions = [(self.text.find(token, begin, end), -len(token), token) for token in tokens]
        matches = [match for match in positions if match[0] >= 0]
        return (min(matches)[0], min(matches)[2]) if matches else None

    def filled(self, whole: str) -> Filled:
        """Replace the marks with their texts.

        Args:
            whole: the template's output for the conversation itself.

        Raises:
            NotWritten: the result differs from `whole`: the template changes a text.
        """
        begins, moved, at, done = [0], [0], 0, 0
        for i, placed in enumerate(self.placed):
            piece = self.text[done : placed.begin]
            at, done = at + len(piece), placed.end
            following = self.text[done : self.limit(i)]
            for text in _variants(placed.mark):
                if whole.startswith(text + following, at):
                    break
            else:
                mark = placed.mark
                raise NotWritten(f"it changes the {mark.part} of messages[{mark.turn}]")
            at += len(text)
            begins.append(done)
            moved.append(at - done)
        before = self.text[: self.limit(-1)]
        if not whole.startswith(before) or len(whole) - at != len(self.text) - done:
            raise NotWritten("its output depends on the content of the messages")
        return Filled(begins, moved)


@dataclass(frozen=True)
class Filled:
    """Maps positions of a scaffold to positions in the output with texts."""

    begins: list[int]
    moved: list[int]

    def place(self, position: int) -> int:
        """Return the position in the output of a scaffold position outside marks."""
        return position + self.moved[bisect_right(self.begins, position) - 1]


def _variants(mark: TextMark) -> Iterator[str]:
    """Yield the forms of a text in template output: itself, or, for a tool result, inside JSON."""
    yield mark.core
    if mark.part == "tool message":
        yield json.dumps(mark.core, ensure_ascii=False)[1:-1]
