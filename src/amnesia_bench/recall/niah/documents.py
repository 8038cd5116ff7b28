"""Haystack documents of a given size in units: words of the essays, or repeated lines.

Documents are truncated, split into sentences and joined exactly as in lm-eval, including the spaces
at both ends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

from amnesia_bench.recall.niah.tasks import LINE, lines_haystack

Split = Callable[[str], list[str]]

# Only about this many characters at the end of a truncated text are split into sentences again. The
# first _AGREEING new sentences must be equal to the known ones.
_SPLIT_AGAIN = 4000
_AGREEING = 3


class HaystackDocuments(Protocol):
    """Documents from one kind of haystack, given their number of units; characters start at 0."""

    @property
    def available(self) -> int | None:
        """The number of units in the haystack; None if it is unlimited."""
        ...

    def increment(self, context_tokens: int) -> int:
        """Return the step, in units, of the search for the document size at this length."""
        ...

    def text(self, units: int) -> str:
        """Return the document that consists of this number of units."""
        ...

    def places(self, units: int) -> Sequence[int]:
        """Return the possible places of a needle: line numbers, or depths in per cent."""
        ...

    def position(self, units: int, place: int) -> int:
        """Return the character of the document before which a needle at this place is inserted."""
        ...

    def depth_percent(self, units: int, place: int) -> float:
        """Return the depth of a place: 0 at the beginning of the document, 100 at its end."""
        ...

    def characters(self, units: int) -> int:
        """Return the approximate length of a document in characters, without building it."""
        ...


class Lines:
    """The haystack of niah_single_1: one line, repeated. Needles are inserted before a line."""

    available = None

    def increment(self, context_tokens: int) -> int:
        return 5 if context_tokens < 4096 else 25

    def text(self, units: int) -> str:
        return lines_haystack(units)

    def places(self, units: int) -> Sequence[int]:
        return range(units)

    def position(self, units: int, place: int) -> int:
        return place * (len(LINE) + 1)

    def depth_percent(self, units: int, place: int) -> float:
        return 100 * place / units

    def characters(self, units: int) -> int:
        return units * (len(LINE) + 1)


class Essays:
    """The haystack of niah_single_2 and _3: the first words of the essays.

    Needles are inserted between sentences. Sentences are joined by one space, so the text differs
    from the essays where Punkt splits at a full stop without a space after it.
    """

    # 40 depths from 0 to 100 %, rounded to integers.
    _DEPTHS = tuple(round(100 * step / 39) for step in range(40))

    def __init__(self, words: Sequence[str], split: Split) -> None:
        self._words = words
        self._split = split
        self._ends = list(accumulate(map(len, words)))  # without the spaces between them
        self._cut = lru_cache(maxsize=8)(self._truncated)
        self._longest = _SplitText(text="", sentences=[], starts=[], added=[])

    @property
    def available(self) -> int:
        return len(self._words)

    def increment(self, context_tokens: int) -> int:
        return 500

    def text(self, units: int) -> str:
        return self._cut(units)[0]

    def sentence_starts(self, units: int) -> Sequence[int]:
        """Return the character at which each sentence of a document starts."""
        return self._cut(units)[1]

    def places(self, units: int) -> Sequence[int]:
        return self._DEPTHS

    def position(self, units: int, place: int) -> int:
        text, starts = self._cut(units)
        sentence = int(len(starts) * (place / 100))
        return starts[sentence] if sentence < len(starts) else len(text)

    def depth_percent(self, units: int, place: int) -> float:
        return float(place)

    def characters(self, units: int) -> int:
        words = min(units, len(self._words))
        end = self._ends[words - 1] + words
        before = bisect_right(self._longest.starts, end) - 1
        return end + (self._longest.added[before] if before >= 0 else 0)

    def _truncated(self, units: int) -> tuple[str, list[int]]:
        """Return a document, and the character at which each of its sentences starts."""
        sentences = self._sentences(" ".join(self._words[:units]).strip())
        ends = accumulate(len(sentence) + 1 for sentence in sentences)
        return " ".join(sentences), [0, *ends][: len(sentences)]

    def _sentences(self, text: str) -> list[str]:
        """Split a text into sentences; if it is a prefix of a known text, split only its end.

        Punkt judges a full stop by the words next to it, so truncation changes only the last
        sentences. If the first new sentences differ from the known ones, the full text is split.
        """
        longest = self._longest
        if longest.text.startswith(text):
            resume = bisect_right(longest.starts, len(text) - _SPLIT_AGAIN) - 1
            if resume > 0:
                end = self._split(text[longest.starts[resume] :])
                if end[:_AGREEING] == longest.sentences[resume : resume + _AGREEING]:
                    return longest.sentences[:resume] + end
        sentences = self._split(text)
        if len(text) > len(longest.text):
            self._longest = _SplitText.of(text, sentences)
        return sentences


@dataclass(frozen=True, kw_only=True)
class _SplitText:
    """A text, its sentences and their start positions.

    `added` is the number of characters by which each sentence moves when the sentences are joined
    by spaces: the original text may have no space between two sentences.
    """

    text: str
    sentences: list[str]
    starts: list[int]
    added: list[int]

    @classmethod
    def of(cls, text: str, sentences: list[str]) -> _SplitText:
        starts, added = [], []
        at = joined = 0
        for sentence in sentences:
            starts.append(text.index(sentence, at))
            added.append(joined - starts[-1])
            at = starts[-1] + len(sentence)
            joined += len(sentence) + 1
        return cls(text=text, sentences=sentences, starts=starts, added=added)


def shared_characters(first: str, second: str) -> int:
    """Return the length of the common prefix of two texts, in characters."""
    shorter = min(len(first), len(second))
    return bisect_left(range(shorter), True, key=lambda n: first[: n + 1] != second[: n + 1])
