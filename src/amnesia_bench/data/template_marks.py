"""Replace the texts of a conversation with marks, to locate each text in a template's output.

A mark replaces the core of a text, that is, the text without surrounding whitespace. The whitespace
is kept, so a template strips it around the mark exactly as it does around the text.
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
    """A mark: its own `text`, and the `core` that it replaces in one `part` of a turn."""

    text: str
    turn: int
    part: str
    core: str


class Marks:
    """Creates and records the marks of one conversation."""

    def __init__(self) -> None:
        self.made: list[TextMark] = []

    def put(self, turn: int, part: str, text: str) -> str:
        """Return `text` with its core replaced by a new mark.

        Args:
            turn: the index of the message with the text.
            part: a name for the text within the message, such as "answer", for error messages too.
            text: the text.
        """
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
    """A mark, and the range [begin, end) of its characters in the scaffold."""

    begin: int
    end: int
    mark: TextMark


class Scaffold:
    """A template's output for a conversation with marks.

    `text` is the output, and `placed` lists the marks in it by position.
    """

    def __init__(self, text: str, marks: Sequence[TextMark], messages: Sequence[Message]) -> None:
        """Locate the marks in the output.

        Raises:
            NotWritten: a mark is repeated or missing. Only the chains of answers to earlier
                questions may be missing, since templates omit these on purpose.
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
        """Return where the mark after the `i`-th begins; for the last mark, where the text ends."""
        return self.placed[i + 1].begin if i + 1 < len(self.placed) else len(self.text)

    def first(self, tokens: frozenset[str], i: int) -> tuple[int, str] | None:
        """Return the first of `tokens` after the `i`-th mark, as (position, token).

        Return None if none of them occurs before the next mark.
        """
        begin, end = self.placed[i].end, self.limit(i)
        positions = [(self.text.find(token, begin, end), -len(token), token) for token in tokens]
        matches = [match for match in positions if match[0] >= 0]
        return (min(matches)[0], min(matches)[2]) if matches else None

    def filled(self, whole: str) -> Filled:
        """Put the texts back in place of the marks, and return the resulting map of positions.

        Args:
            whole: the template's output for the conversation without marks.

        Raises:
            NotWritten: the result differs from `whole`, so the template changes a text, or its
                output depends on the texts in another way.
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
    """A map from positions in a scaffold to positions in the output for the original conversation.

    Positions from `begins[i]` to `begins[i + 1]` are shifted by `moved[i]`.
    """

    begins: list[int]
    moved: list[int]

    def place(self, position: int) -> int:
        """Return the position in the output for a position in the scaffold, outside marks."""
        return position + self.moved[bisect_right(self.begins, position) - 1]


def _variants(mark: TextMark) -> Iterator[str]:
    """Yield the forms in which a template may write a text.

    A template may write any text unchanged, and a tool result also escaped, inside a JSON string.
    """
    yield mark.core
    if mark.part == "tool message":
        yield json.dumps(mark.core, ensure_ascii=False)[1:-1]
