"""Generate all prompts of one prompt set with the same random draws as lm-eval 0.4.13.

lm-eval first searches for the number of haystack units that fills the context length, with one
sample per step, and then generates the samples. This module makes the same draws in the same order,
but it tokenises only the last steps of the search, and only the text around each insertion.
Source: lm_eval/tasks/ruler/prepare_niah.py.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah.documents import HaystackDocuments, shared_characters
from amnesia_bench.recall.niah.splicing import (
    NotSpliceableError,
    Span,
    SplicedText,
    WholeText,
    joined,
    tokenize,
)
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING, NiahTask, prompt_pieces, surrounded
from amnesia_bench.records.niah import NiahDocument, NiahSamples, PromptSetRecord

_ANSWER_TOKENS = NIAH_SAMPLING.max_new_tokens
# A prompt whose estimated length is at least this many tokens below the context length is not
# measured. For every prompt that is measured, the estimate must be within half this number of
# tokens of the measured length.
_MARGIN = 256
# The value that is assumed in estimates; a uuid has a few more tokens.
_SOME_VALUE = "1234567"


class TooShortError(Exception):
    """The haystack is too short: with all of it, prompt and answer have only `tokens` tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


@dataclass(frozen=True, kw_only=True)
class _Draw:
    """The random part of a sample; `place` is one of `HaystackDocuments.places`."""

    key: str
    value: str
    place: int


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A sample: its entries in the columns of `NiahSamples`, and its number of haystack units."""

    units: int
    position: int
    depth_percent: float
    key: str
    value: str
    length: int
    prompt_tokens: int
    needle_start: int
    needle_end: int
    prompt_sha256: str


class PromptSetMaker:
    """Generates the prompts of one task at one length.

    Args:
        task: the task, with its wording and values.
        context_tokens: lm-eval's max_seq_length.
        haystack: the documents in which needles are hidden.
        tokenizer: a fast tokenizer.
        base: a tokenised document that is at least as long as any document that fits.
        keys: the keys from which one is drawn per sample.
    """

    def __init__(
        self,
        task: NiahTask,
        context_tokens: int,
        haystack: HaystackDocuments,
        tokenizer: Any,
        base: SplicedText,
        keys: Sequence[str],
    ) -> None:
        self._task = task
        self._context_tokens = context_tokens
        self._name = f"{task.name}@{context_tokens}"
        self._haystack = haystack
        self._tokenizer = tokenizer
        self._base = base
        self._keys = keys
        self._whole = WholeText(tokenizer, base.text)
        self._text: SplicedText | WholeText = base if base.moves_freely else self._whole
        self._special_tokens = len(tokenizer("a").input_ids) - len(tokenize(tokenizer, "a").ids)
        # Number of tokens outside the haystack, which is similar for all keys and values.
        other = task.head + task.needle("key", _SOME_VALUE) + task.question("key") + _SOME_VALUE
        self._other_tokens = self._special_tokens + len(tokenize(tokenizer, other).ids)
        self._documents: dict[int, NiahDocument] = {}
        # Cached for all 40 needle positions in essays: hashing 256K tokens takes a millisecond.
        self._hashed = lru_cache(maxsize=40)(self._hash_before)

    def make(self, samples: int, rng: Random) -> PromptSetRecord:
        """Draw all samples of the prompt set, and leave `rng` in the same state as lm-eval does.

        Raises:
            UserError: the context length is too small for the text around the haystack.
            TooShortError: the haystack is too short to fill the context length.
        """
        state = rng.getstate()
        try:
            return self._make(samples, rng)
        except NotSpliceableError:
            rng.setstate(state)
            self._text = self._whole
            return self._make(samples, rng)

    def _make(self, samples: int, rng: Random) -> PromptSetRecord:
        units = self._search(rng)
        rows = [self._sample(units, rng) for _ in range(samples)]
        self._check(rows[0])
        used = sorted({row.units for row in rows})
        columns = {
            name: tuple(getattr(row, name) for row in rows)
            for name in NiahSamples.__dataclass_fields__
            if name != "document"
        }
        return PromptSetRecord(
            task=self._task.name,
            context_tokens=self._context_tokens,
            spliced=self._text is self._base,
            documents=tuple(self._document(units) for units in used),
            samples=NiahSamples(document=tuple(used.index(row.units) for row in rows), **columns),
        )

    def _search(self, rng: Random) -> int:
        """Return the number of haystack units with which lm-eval starts each sample."""
        step = self._haystack.increment(self._context_tokens)
        available = self._haystack.available
        units, tokens = step, 0
        while tokens + _ANSWER_TOKENS < self._context_tokens:
            draw = self._draw(units, rng)
            exhausted = available is not None and units > available
            tokens = self._estimate(units)
            if exhausted or not self._far_below(tokens):
                tokens = self._measure(units, draw)
            if tokens + _ANSWER_TOKENS > self._context_tokens:
                units -= step
                break
            if exhausted:
                raise TooShortError(tokens + _ANSWER_TOKENS)
            if units > self._context_tokens:
                raise UserError(
                    f"{self._name}: {units} words or lines have only {tokens} tokens",
                    hint="A haystack with so few tokens per word cannot fill this length.",
                )
            units += step
        return max(units, 1)

    def _far_below(self, tokens: int) -> bool:
        spliced = self._text is self._base
        return spliced and tokens + _ANSWER_TOKENS + _MARGIN < self._context_tokens

    def _estimate(self, units: int) -> int:
        """Return the approximate length, in tokens, of a prompt with this number of units."""
        return self._base.tokens_before(self._haystack.characters(units)) + self._other_tokens

    def _measure(self, units: int, draw: _Draw) -> int:
        """Return the prompt length in tokens, with the value, as lm-eval's search counts it."""
        pieces = self._pieces(units, draw)
        tokens = len(self._text.compose([*pieces, draw.value])) + self._special_tokens
        if self._text is self._base and abs(tokens - self._estimate(units)) > _MARGIN // 2:
            raise NotSpliceableError
        return tokens

    def _draw(self, units: int, rng: Random) -> _Draw:
        key = rng.choice(self._keys)
        if self._task.value_noun == "number":
            value = str(rng.randint(10**6, 10**7 - 1))
        else:
            value = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        place = rng.sample(self._haystack.places(units), 1)[0]
        rng.sample(range(1), 1)  # lm-eval draws the queried key, out of one
        return _Draw(key=key, value=value, place=place)

    def _sample(self, max_units: int, rng: Random) -> _Row:
        """Draw samples with `max_units` haystack units, then with fewer, until one fits."""
        length = 0
        for units in range(max_units, 0, -self._haystack.increment(self._context_tokens)):
            draw = self._draw(units, rng)
            pieces = self._pieces(units, draw)
            length = len(self._text.compose(pieces)) + self._special_tokens + _ANSWER_TOKENS
            if length <= self._context_tokens:
                return self._row(units, draw, length)
        # lm-eval skips such samples with a warning.
        raise UserError(
            f"{self._name}: a sample of the shortest haystack takes {length} tokens, "
            f"{_ANSWER_TOKENS} of them for the answer",
            hint=f"The length must be at least about {length + _MARGIN // 4}.",
        )

    def _row(self, units: int, draw: _Draw, length: int) -> _Row:
        task, position = self._task, self._haystack.position(units, draw.place)
        pieces = [*self._pieces(units, draw), " " + task.gen_prefix(draw.key)]
        composed = self._text.compose(pieces)
        needle = task.needle(draw.key, draw.value)
        inserted = surrounded(
            needle, position, self._document(units).characters, essays=task.essays
        )
        start = len(task.head) + position + inserted.index(needle)
        first, stop = composed.span(start, start + len(needle))
        return _Row(
            units=units,
            position=position,
            depth_percent=self._haystack.depth_percent(units, draw.place),
            key=draw.key,
            value=draw.value,
            length=length,
            prompt_tokens=len(composed),
            needle_start=first,
            needle_end=stop,
            prompt_sha256=self._prompt_sha256(pieces),
        )

    def _prompt_sha256(self, pieces: Sequence[Span | str]) -> str:
        digest, after = self._hashed(*(piece for piece in pieces if isinstance(piece, Span)))
        digest = digest.copy()
        _, inserted, *end = (piece for piece in pieces if isinstance(piece, str))
        digest.update(inserted.encode() + after + "".join(end).encode())
        return digest.hexdigest()

    def _hash_before(self, before: Span, after: Span) -> tuple[hashlib._Hash, bytes]:
        """Return the hash of the text before the needle, and the bytes of the haystack after it."""
        start = self._task.head + joined(self._base.text, [before])
        return hashlib.sha256(start.encode()), joined(self._base.text, [after]).encode()

    def _check(self, row: _Row) -> None:
        """Raise an error if the spliced tokens of a prompt are not the tokens of its full text."""
        if self._text is not self._base:
            return
        pieces = prompt_pieces(
            self._task, self._document(row.units), row.position, row.key, row.value
        )
        pieces.append(" " + self._task.gen_prefix(row.key))
        whole = tokenize(self._tokenizer, joined(self._base.text, pieces))
        if not np.array_equal(self._text.compose(pieces).ids(), whole.ids):
            raise NotSpliceableError

    def _pieces(self, units: int, draw: _Draw) -> list[Span | str]:
        position = self._haystack.position(units, draw.place)
        return prompt_pieces(self._task, self._document(units), position, draw.key, draw.value)

    def _document(self, units: int) -> NiahDocument:
        if units not in self._documents:
            text = self._haystack.text(units)
            shared = shared_characters(self._base.text, text)
            self._documents[units] = NiahDocument(units=units, shared=shared, tail=text[shared:])
        return self._documents[units]
