"""What all of RULER's tasks share: a drawn prompt, how its tokens are counted, the search.

Each task draws prompts of a size (words, lines, documents, ...). lm-eval first grows the size until
a prompt with its answer no longer fits, then draws the prompts. All of this is repeated here with
the same draws, but prompts that are far too short are not tokenised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from amnesia_bench.recall.niah.splicing import (
    NotSpliceableError,
    Span,
    SplicedText,
    WholeText,
    count_tokens,
    joined,
    tokenize,
)
from amnesia_bench.recall.niah.streams import RandomStreams
from amnesia_bench.recall.niah.tasks import RecallTask

Pieces = Sequence[Span | str]

# In the search, a text is measured if its estimated length with the answer exceeds the share _SURE
# of the context length, or if it is _GROWTH times as long as the last measured text. The estimate
# is linear in the number of characters. If a text after one that was not measured fills more than
# _ALMOST_FULL, that one may have been too long: the search starts again, and measures every text.
_SURE = 0.93
_GROWTH = 1.5
_ALMOST_FULL = 0.97
# Characters at the end of a text in which the tokens may change when something is appended.
_TAIL = 400


class TooLongError(Exception):
    """Not even the smallest prompt of a task fits: it needs `tokens` tokens with its answer."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


class EstimateError(Exception):
    """A text that was not measured, because its estimate was short, may have been too long."""


@dataclass(frozen=True, kw_only=True)
class NeedlePlace:
    """A sentence with a value that is asked for: its characters in the input, and its depth."""

    start: int
    end: int
    depth_percent: float


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One prompt as it was drawn.

    `index` is lm-eval's index, which skips the prompts that do not fit. `length` is the length as
    lm-eval defines it: tokens of its text, plus those reserved for the answer. `example` is the
    field `input_example` of lm-eval's documents of ruler_cwe, which is not part of the prompt.
    `measured_suffix` is the end of the measured text that is not part of the input.
    """

    index: int
    pieces: Pieces
    outputs: tuple[str, ...]
    gen_prefix: str
    length: int
    needles: tuple[NeedlePlace, ...] = ()
    example: str | None = None
    measured_suffix: str = ""


class TokenMeter:
    """Counts the tokens of texts that are composed of strings and of spans of a base text.

    Args:
        tokenizer: a fast tokenizer.
        base: the tokenised text to which spans refer; None if texts have no spans.
    """

    def __init__(self, tokenizer: Any, base: SplicedText | None) -> None:
        self.tokenizer = tokenizer
        self.special_tokens = len(tokenizer("a").input_ids) - len(tokenize(tokenizer, "a").ids)
        self.base_text = "" if base is None else base.text
        whole = WholeText(tokenizer, self.base_text)
        self.spliced = base is not None and base.moves_freely
        self.text: SplicedText | WholeText = base if base is not None and self.spliced else whole
        self._has_base = base is not None

    def measure_whole_texts(self) -> None:
        """From now on, tokenise every composed text completely."""
        self.spliced = False
        self.text = WholeText(self.tokenizer, self.base_text)

    def tokens(self, pieces: Pieces) -> int:
        """Return the number of tokens of a text, with the tokenizer's special tokens."""
        if not self._has_base:
            return count_tokens(self.tokenizer, joined("", pieces)) + self.special_tokens
        return len(self.text.compose(pieces)) + self.special_tokens

    def appended(self, text: str, tokens: int, old: str, new: str) -> int:
        """Return the number of tokens of `text + new`, given that of `text + old`.

        Only the end of the text is tokenised.
        """
        tail = text[-_TAIL:]
        added = count_tokens(self.tokenizer, tail + new) - count_tokens(self.tokenizer, tail + old)
        return tokens + added


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search for the size with which lm-eval starts each prompt.

    Attributes:
        first, step: the first size and the increment.
        reserved: tokens to reserve for the answer and for an example.
        context_tokens: lm-eval's max_seq_length.
        largest: the size at which the search ends; None if it is unlimited.
        every: measure every text, because estimates have turned out wrong.
    """

    first: int
    step: int
    reserved: int
    context_tokens: int
    largest: int | None = None
    every: bool = False

    def size(self, draw: Callable[[int], Pieces], meter: TokenMeter) -> int:
        """Return the size; `draw` returns the text that the search measures.

        Raises:
            EstimateError: a text that was not measured may have been too long.
        """
        size, tokens = self.first, 0
        measured: list[tuple[int, int]] = []  # characters and tokens of the last two
        skipped = False
        while tokens + self.reserved < self.context_tokens:
            pieces = draw(size)
            characters = _characters(pieces)
            estimate = self._estimate(measured, characters)
            if estimate is None or not self._is_sure(estimate, characters, measured[-1][0]):
                tokens = meter.tokens(pieces)
                if skipped and tokens + self.reserved > _ALMOST_FULL * self.context_tokens:
                    raise EstimateError
                measured = [*measured[-1:], (characters, tokens)]
                skipped = False
            else:
                tokens, skipped = estimate, True
            if tokens + self.reserved > self.context_tokens:
                return size - self.step
            size += self.step
            if self.largest is not None and size > self.largest:
                return self.largest
        return size

    def _estimate(self, measured: Sequence[tuple[int, int]], characters: int) -> int | None:
        """Return the estimated number of tokens of a text; None if it must be measured."""
        if self.every or len(measured) < 2:
            return None
        (c1, t1), (c2, t2) = measured
        return None if c1 == c2 else round(t2 + (t2 - t1) * (characters - c2) / (c2 - c1))

    def _is_sure(self, estimate: int, characters: int, last_characters: int) -> bool:
        share = (estimate + self.reserved) / self.context_tokens
        return share < _SURE and characters < _GROWTH * last_characters


class Drawer(Protocol):
    """Draws the prompts of one task at one length."""

    @property
    def meter(self) -> TokenMeter: ...

    def draw(self, samples: int, streams: RandomStreams, *, every: bool) -> list[Draft]:
        """Draw the prompts as lm-eval does, and leave the generators in the same state.

        Args:
            samples: number of prompts.
            streams: the random generators.
            every: whether the search must measure every text.

        Raises:
            TooLongError: the smallest prompt does not fit.
            EstimateError: see `Search.size`.
            NotSpliceableError: see `SplicedText`.
        """
        ...


def draw_all(drawer: Drawer, samples: int, new_streams: Callable[[], RandomStreams]) -> list[Draft]:
    """Draw all prompts of a task; start again with complete measurements if shortcuts failed."""
    every = False
    while True:
        try:
            return drawer.draw(samples, new_streams(), every=every)
        except EstimateError:
            every = True
        except NotSpliceableError:
            drawer.meter.measure_whole_texts()


def delimiter(task: RecallTask, text_end: str, gen_prefix: str) -> str:
    """Return what lm-eval puts between a document's input and the beginning of the answer."""
    if not text_end or text_end[-1].isspace() or gen_prefix[0].isspace():
        return ""
    return task.delimiter


def _characters(pieces: Pieces) -> int:
    return sum(
        len(piece) if isinstance(piece, str) else piece.end - piece.start for piece in pieces
    )
