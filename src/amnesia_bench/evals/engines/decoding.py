"""Token by token: the loop that makes answers out of a cache that has read the prompts.

Shapes: B rows, E vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from amnesia_bench.evals.engines.language_model import LanguageModel
from amnesia_bench.evals.engines.out_of_memory import reaching
from amnesia_bench.evals.engines.protocol import Request
from amnesia_bench.evals.engines.sampling import choose, generator_of
from amnesia_bench.records.evaluation import FinishReason, Generation

Decode = Callable[[Sequence[int]], str]
# End tokens, and what turns tokens into text.
Stopping = tuple[frozenset[int], Decode]


@dataclass(eq=False)
class Row:
    """One answer in the making."""

    request: Request
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @classmethod
    def of(cls, request: Request) -> Row:
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
        """Return the finished answer; a stop string ends its text, not its tokens."""
        assert self.finish_reason is not None
        text = decode(self.tokens)
        ends = [text.find(stop) for stop in self.request.sampling.stop if stop in text]
        return Generation(
            key=self.request.key,
            text=text[: min(ends)] if ends else text,
            tokens=tuple(self.tokens),
            prompt_tokens=len(self.request.tokens),
            finish_reason=self.finish_reason,
            seed=self.request.seed,
        )


def finish(
    model: LanguageModel,
    cache: Cache | None,
    logits: Tensor,
    rows: Sequence[Row],
    stopping: Stopping,
) -> None:
    """Complete all rows, in place.

    Args:
        model: the model.
        cache: has read the prompts, one per row; of no use to anyone afterwards, unless there is
            one row only: then it holds the prompt and the answer.
        logits: of the prompts' last tokens [B, E].
        rows: with the same sampling.
        stopping: end tokens, and what turns tokens into text.
    """
    eos_ids, decode = stopping
    sampling = rows[0].request.sampling
    active = list(rows)
    while True:
        tokens = choose(logits, sampling, [row.generator for row in active])
        for row, token in zip(active, tokens.tolist(), strict=True):
            if row.finish_reason is None:
                row.take(token, eos_ids, decode)
        running = [i for i, row in enumerate(active) if row.finish_reason is None]
        if not running:
            return
        # Each time the copies cost as much as one step, and save half of all later ones.
        if model.cache_class is not None and len(running) <= len(active) // 2:
            assert cache is not None
            index: Any = torch.tensor(running, device=tokens.device)
            with reaching(len(rows[0].request.tokens)):
                cache.reorder_cache(index)
            tokens, active = tokens[index], [active[i] for i in running]
        with reaching(len(rows[0].request.tokens) + len(active[0].tokens)):
            logits, cache = model.advance(cache, tokens[:, None])
