"""Tokenise a long text with a few changes by reusing the tokens of the unchanged text.

Only the neighbourhood of a change is tokenised again. At its edges, several consecutive new tokens
must be equal to those of the unchanged text; otherwise nothing is spliced. The tokens that a
tokenizer produces may depend on distant text, or on the position in the text;
`SplicedText.moves_freely` detects a dependence on the position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

# Characters that are tokenised on each side of a change, and tokens that must be equal on each side
# of a seam.
_MARGIN = 256
_AGREEING = 8
# Inserted before a text to test whether the text keeps its tokens. For a text of at most _LONG_TEXT
# characters, each suffix is tested too.
_SHIFT = "It moves the text."
_LONG_TEXT = 50_000


class NotSpliceableError(Exception):
    """The tokens around a change differ from those of the unchanged text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """Token ids, int32 [T], and the characters at which each token starts and ends, int32 [T]."""

    ids: Ints
    starts: Ints
    ends: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Tokens `first` to `stop` of a text; composing moves them by `moved` characters."""

    tokens: Tokens
    first: int
    stop: int
    moved: int


@dataclass(frozen=True)
class Composed:
    """The tokens of a composed text, represented as runs of tokens from other texts."""

    runs: tuple[Run, ...]

    def __len__(self) -> int:
        return sum(run.stop - run.first for run in self.runs)

    def ids(self) -> Ints:
        """Return the token ids, int32 [T]."""
        return np.concatenate([run.tokens.ids[run.first : run.stop] for run in self.runs])

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the range [first, stop) of tokens that overlap the characters `start` to `end`."""
        first = stop = 0
        for run in self.runs:
            part = slice(run.first, run.stop)
            first += _before(run.tokens.ends[part], start - run.moved + 1)
            stop += _before(run.tokens.starts[part], end - run.moved)
        return first, stop


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of the unchanged text."""

    start: int
    end: int


def _before(positions: Ints, character: int) -> int:
    """Return the number of positions below `character`; `positions` must be sorted."""
    # For a plain int, numpy would first convert the entire array to int64.
    return int(np.searchsorted(positions, np.int32(character)))


def joined(text: str, pieces: Sequence[Span | str]) -> str:
    """Return the concatenation of `pieces`, each a span of `text` or a string."""
    return "".join(
        piece if isinstance(piece, str) else text[piece.start : piece.end] for piece in pieces
    )


def tokenize(tokenizer: Any, text: str) -> Tokens:
    """Tokenise a text without adding special tokens."""
    encoded = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    offsets = np.array(encoded.offsets, np.int32).reshape(-1, 2)
    ids = np.array(encoded.ids, np.int32)
    return Tokens(ids=ids, starts=offsets[:, 0].copy(), ends=offsets[:, 1].copy())


def count_tokens(tokenizer: Any, text: str) -> int:
    """Return the number of tokens of a text without special tokens."""
    return len(_without_positions(tokenizer, text))


def _without_positions(tokenizer: Any, text: str) -> Any:
    """Return the encoding of a text; this is faster than an encoding with positions."""
    (encoded,) = tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return encoded


class SplicedText:
    """A text that is tokenised once, and whose changed versions reuse its tokens."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.text = text
        self.tokens = tokenize(tokenizer, text)
        self._tokenizer = tokenizer
        # Cached, since all samples start with the same text and first words of the haystack.
        self._tokenize_window = lru_cache(maxsize=64)(lambda window: tokenize(tokenizer, window))

    @cached_property
    def moves_freely(self) -> bool:
        """Whether the text keeps its tokens when other text is inserted before it."""
        # In a short text, few places can reveal that a tokenizer depends on the position.
        shifts = 1 if len(self.text) > _LONG_TEXT else len(_SHIFT)
        return all(self._keeps_tokens_after(_SHIFT[first:]) for first in range(shifts))

    def _keeps_tokens_after(self, shift: str) -> bool:
        pieces: list[Span | str] = [shift, Span(0, len(self.text))]
        try:
            shifted = self.compose(pieces).ids()
        except NotSpliceableError:
            return False
        whole = _without_positions(self._tokenizer, joined(self.text, pieces))
        return np.array_equal(shifted, whole.ids)

    def tokens_before(self, character: int) -> int:
        """Return the number of tokens that start before a character of the text."""
        return _before(self.tokens.starts, character)

    def compose(self, pieces: Sequence[Span | str]) -> Composed:
        """Return the tokens of the concatenated pieces.

        Raises:
            NotSpliceableError: the tokens around a change differ from those of the unchanged text.
        """
        changes, spans = self._changes(pieces)
        windows = self._windows(changes, spans)
        runs: list[Run] = []
        first = 0
        for span, left, right in zip(spans, windows, windows[1:], strict=False):
            moved = right.moved + _MARGIN - span.end
            stop, base_first = self._seam(left, left.moved - moved, span.start + _MARGIN // 2)
            next_first, base_stop = self._seam(right, right.moved - moved, span.end - _MARGIN // 2)
            runs.append(replace(left, first=first, stop=stop))
            runs.append(Run(tokens=self.tokens, first=base_first, stop=base_stop, moved=moved))
            first = next_first
        runs.append(replace(windows[-1], first=first))
        return Composed(tuple(runs))

    def _changes(self, pieces: Sequence[Span | str]) -> tuple[list[str], list[Span]]:
        """Return the texts before, between and after the long spans, and the long spans."""
        changes, spans = [""], []
        for piece in pieces:
            if isinstance(piece, str):
                changes[-1] += piece
            elif piece.end - piece.start < 4 * _MARGIN:
                changes[-1] += self.text[piece.start : piece.end]
            else:
                spans.append(piece)
                changes.append("")
        return changes, spans

    def _windows(self, changes: list[str], spans: list[Span]) -> list[Run]:
        """Return the tokens of each change, with margins from its neighbouring spans."""
        windows, at = [], 0
        for before, change, after in zip([None, *spans], changes, [*spans, None], strict=True):
            left = self.text[before.end - _MARGIN : before.end] if before else ""
            right = self.text[after.start : after.start + _MARGIN] if after else ""
            tokens = self._tokenize_window(left + change + right)
            windows.append(Run(tokens=tokens, first=0, stop=len(tokens.ids), moved=at - len(left)))
            at += len(change) + (after.end - after.start if after else 0)
        return windows

    def _seam(self, window: Run, moved: int, at: int) -> tuple[int, int]:
        """Return the token indices, in a window and in the unchanged text, of a seam between them.

        Args:
            window: the tokens of a change and its margins, which extend to both sides of `at`.
            moved: character position in the unchanged text minus character position in the window.
            at: approximate position of the seam, in characters of the unchanged text.
        """
        ids, starts = window.tokens.ids, window.tokens.starts
        own = _before(starts, at - moved)
        base = _before(self.tokens.starts, at)
        around = slice(own - _AGREEING, own + _AGREEING)
        unchanged = slice(base - _AGREEING, base + _AGREEING)
        if (
            min(own, base) < _AGREEING
            or len(ids[around]) < 2 * _AGREEING
            or not np.array_equal(ids[around], self.tokens.ids[unchanged])
            or not np.array_equal(starts[around] + moved, self.tokens.starts[unchanged])
        ):
            raise NotSpliceableError
        return own, base


class WholeText:
    """The fallback for tokenizers that do not allow splicing; it tokenises each composed text."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.text = text
        self._tokenizer = tokenizer

    def compose(self, pieces: Sequence[Span | str]) -> Composed:
        """Return the tokens of the concatenated pieces."""
        tokens = tokenize(self._tokenizer, joined(self.text, pieces))
        return Composed((Run(tokens=tokens, first=0, stop=len(tokens.ids), moved=0),))
