"""Token by token: the loop that makes answers out of a cache that has read the prompts.

Shapes: B rows, E vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from amnesia_bench.inference.answers import Decode, generation_of, not_finite
from amnesia_bench.inference.language_model import LanguageModel
from amnesia_bench.inference.out_of_memory import reaching
from amnesia_bench.inference.protocol import Request
from amnesia_bench.inference.sampling import choose, generator_of
from amnesia_bench.records.evaluation import FinishReason, Generation, Sampling

# End tokens, and what turns tokens into text.
Stopping = tuple[frozenset[int], Decode]


@dataclass(eq=False)
class DecodingRow:
    """One answer in the making."""

    request: Request
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @classmethod
    def of(cls, request: Request) -> DecodingRow:
        """Start an answer."""
        return cls(request, generator_of(request.seed))

    def take(self, token: int, eos_ids: frozenset[int], decode: Decode) -> None:
        """Add a token, and see whether the answer ends with it."""
        if token in eos_ids:
            self.finish_reason = FinishReason.EOS
            return
        self.tokens.append(token)
        if self._stops(decode):
            self.finish_reason = FinishReason.STOP
        elif len(self.tokens) >= self.request.sampling.max_new_tokens:
            self.finish_reason = FinishReason.LENGTH

    def _stops(self, decode: Decode) -> bool:
        stops = self.request.sampling.stop
        if not stops:
            return False
        # A token that shows has at least a byte; some more for characters cut at the front.
        tail = max(len(stop.encode()) for stop in stops) + 4
        text = decode(self.tokens[-tail:])
        return any(stop in text for stop in stops)

    def generation(self, decode: Decode) -> Generation:
        """Return the finished answer."""
        assert self.finish_reason is not None
        return generation_of(self.request, self.tokens, self.finish_reason, decode)


@dataclass(frozen=True, eq=False)
class ReadRows:
    """Rows whose prompts have been read, and all that decoding goes on from.

    `logits` are those of the prompts' last tokens [B, E]. `cache` has one row per prompt, and is
    of no use to anyone afterwards unless there is one row only: then it holds the prompt and the
    answer. `padding` counts the tokens of padding before each prompt [B], None without any.
    """

    rows: Sequence[DecodingRow]
    logits: Tensor
    cache: Cache | None
    padding: Tensor | None = None


@torch.inference_mode()
def decode_batch(
    model: LanguageModel, batch: ReadRows, stopping: Stopping
) -> Iterator[DecodingRow]:
    """Complete all rows, in place; give each back as soon as it is finished.

    Args:
        model: the model.
        batch: rows at the ends of their prompts.
        stopping: end tokens, and what turns tokens into text.

    Raises:
        MemoryExhaustedError: some rows were not finished.
        StageFailedError: a row has logits that are not finite: it has no answer, and the rows
            that are finished keep theirs.
    """
    active, cache, logits, padding = list(batch.rows), batch.cache, batch.logits, batch.padding
    longest = max(len(row.request.tokens) for row in active)
    for step in itertools.count():
        _check_finite(logits, active)
        tokens = _next_tokens(logits, active)
        for row, token in zip(active, tokens.tolist(), strict=True):
            if row.finish_reason is None:
                row.take(token, *stopping)
                if row.finish_reason is not None:
                    yield row
        running = [i for i, row in enumerate(active) if row.finish_reason is None]
        if not running:
            return
        with reaching(longest + step):
            # Each time the copies cost as much as one step, and save half of all later ones.
            if model.cache_class is not None and len(running) <= len(active) // 2:
                assert cache is not None
                index: Any = torch.tensor(running, device=tokens.device)
                cache.reorder_cache(index)
                tokens, active = tokens[index], [active[i] for i in running]
                padding = None if padding is None else padding[index]
            logits, cache = model.advance(cache, tokens[:, None], padding)


def _check_finite(logits: Tensor, rows: Sequence[DecodingRow]) -> None:
    """Raise StageFailedError where the model computed no token: argmax would still name one.

    A maximum is NaN where any logit is. Single logits of -inf (tokens that a model rules out) are
    none of its faults.
    """
    broken = ~logits.amax(dim=-1).isfinite()
    for row, bad in zip(rows, broken.tolist(), strict=True):
        if bad and row.finish_reason is None:
            raise not_finite(row.request, len(row.tokens))


def _next_tokens(logits: Tensor, rows: Sequence[DecodingRow]) -> Tensor:
    """Return the next token of each row [B], each chosen as its own sampling says."""
    places: dict[Sampling, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.request.sampling, []).append(i)
    if len(places) == 1:
        return choose(logits, rows[0].request.sampling, [row.generator for row in rows])
    tokens = torch.empty(len(rows), dtype=torch.long, device=logits.device)
    for sampling, chosen in places.items():
        generators = [rows[i].generator for i in chosen]
        tokens[chosen] = choose(logits[chosen], sampling, generators)
    return tokens
