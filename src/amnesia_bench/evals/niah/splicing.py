"""Tokens of a long text with a few changes, out of the tokens of the unchanged text.

Only the neighbourhood of a change is tokenised again. At its edges the new tokens must be those
of the unchanged text, several in a row, or nothing is spliced: a tokenizer may in principle look
at any distance. What it does to a whole text is checked by whoever needs to be sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

# Characters tokenised on either side of a change, and tokens that must agree around a seam.
_MARGIN = 256
_AGREEING = 8


class NotSpliceableError(Exception):
    """Around a change, this tokenizer's tokens differ from those of the unchanged text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """Token ids, int32 [T], and where in the text each begins and ends, in characters."""

    ids: Ints
    starts: Ints
    ends: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the first token that reaches into these characters, and one past the last."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        return first, int(np.searchsorted(self.starts, end, side="left"))

    def shifted(self, first: int, stop: int, by: int) -> Tokens:
        """Return a run of tokens, moved by a number of characters."""
        run = slice(first, stop)
        return Tokens(ids=self.ids[run], starts=self.starts[run] + by, ends=self.ends[run] + by)


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of the unchanged text."""

    start: int
    end: int


def tokenize(tokenizer: Any, text: str) -> Tokens:
    """Tokenise a text, without special tokens."""
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    offsets = np.array(encoded["offset_mapping"], np.int32).reshape(-1, 2)
    ids = np.array(encoded["input_ids"], np.int32)
    return Tokens(ids=ids, starts=offsets[:, 0].copy(), ends=offsets[:, 1].copy())


class SplicedText:
    """A text that was tokenised once, out of which changed texts are put together."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.text = text
        self.tokens = tokenize(tokenizer, text)
        # The text before a haystack and its first words are the same in all samples.
        self._tokenize = lru_cache(maxsize=64)(lambda window: tokenize(tokenizer, window))

    def compose(self, pieces: Sequence[Span | str]) -> Tokens:
        """Return the tokens of the pieces' text.

        Raises:
            NotSpliceableError: the tokens around a change are not those of the unchanged text.
        """
        changes, spans = self._changes(pieces)
        windows = self._windows(changes, spans)
        parts: list[Tokens] = []
        first = 0
        for span, (left, left_at), (right, right_at) in zip(
            spans, windows, windows[1:], strict=False
        ):
            moved = right_at + _MARGIN - span.end  # from the unchanged text to the composed one
            stop, kept = self._seam(left, left_at - moved, span.start + _MARGIN // 2)
            after, kept_stop = self._seam(right, right_at - moved, span.end - _MARGIN // 2)
            parts.append(left.shifted(first, stop, left_at))
            parts.append(self.tokens.shifted(kept, kept_stop, moved))
            first = after
        last, last_at = windows[-1]
        parts.append(last.shifted(first, len(last), last_at))
        return Tokens(
            ids=np.concatenate([part.ids for part in parts]),
            starts=np.concatenate([part.starts for part in parts]),
            ends=np.concatenate([part.ends for part in parts]),
        )

    def _changes(self, pieces: Sequence[Span | str]) -> tuple[list[str], list[Span]]:
        """Return the spans worth keeping, and the texts before, between and after them."""
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

    def _windows(self, changes: list[str], spans: list[Span]) -> list[tuple[Tokens, int]]:
        """Return each change's tokens with its margins', and where its window begins."""
        windows, at = [], 0
        for before, change, after in zip(
            [None, *spans], changes, [*spans, None], strict=True
        ):
            left = self.text[before.end - _MARGIN : before.end] if before else ""
            right = self.text[after.start : after.start + _MARGIN] if after else ""
            windows.append((self._tokenize(left + change + right), at - len(left)))
            at += len(change) + (after.end - after.start if after else 0)
        return windows

    def _seam(self, window: Tokens, moved: int, at: int) -> tuple[int, int]:
        """Return the token of a window and of the unchanged text where one may become the other.

        Args:
            window: tokens that reach over `at`.
            moved: what leads from characters of the window to those of the unchanged text.
            at: about where, in characters of the unchanged text.
        """
        ours = int(np.searchsorted(window.starts, at - moved))
        base = int(np.searchsorted(self.tokens.starts, at))
        around = slice(ours - _AGREEING, ours + _AGREEING)
        unchanged = slice(base - _AGREEING, base + _AGREEING)
        if (
            min(ours, base) < _AGREEING
            or len(window.ids[around]) < 2 * _AGREEING
            or not np.array_equal(window.ids[around], self.tokens.ids[unchanged])
            or not np.array_equal(window.starts[around] + moved, self.tokens.starts[unchanged])
        ):
            raise NotSpliceableError
        return ours, base
