"""Choosing the next token of each row of a batch.

A row draws one number per token from a generator of its own, so what it says depends neither on
its neighbours nor on the order of the requests.

Shapes: B rows, E vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amnesia_bench.records.evaluation import Sampling


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Return the next token of each row [B] for logits [B, E].

    Temperature first, then top-k, then top-p of what is left, as in transformers and vLLM.

    Args:
        logits: of the last position.
        sampling: the same for all rows.
        generators: one per row, on the CPU so that a seed means the same on every device; unused
            and may be empty when greedy.
    """
    if sampling.greedy:
        return logits.argmax(dim=-1)
    scaled = logits.double() / sampling.temperature
    # Stable: equal logits keep the order of their ids.
    ranked, ids = scaled.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        ranked, ids = ranked[:, : sampling.top_k], ids[:, : sampling.top_k]
    likely = ranked.softmax(dim=-1)
    before = likely.cumsum(dim=-1) - likely
    # The likeliest token always stays: nothing is before it.
    likely = likely.masked_fill(before >= sampling.top_p, 0.0)
    reached = likely.cumsum(dim=-1)
    uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    drawn = uniform.to(logits.device)[:, None] * reached[:, -1:]
    place = torch.searchsorted(reached, drawn, right=True)
    # Rounding may put a draw at the very end of the sum: then the last token that may be drawn.
    last = (likely > 0).sum(dim=-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(place, last))[:, 0]


def generator_of(seed: int | None) -> torch.Generator:
    """Return the generator of one request."""
    generator = torch.Generator("cpu")
    generator.manual_seed(0 if seed is None else seed)
    return generator
