"""Sampling in which each row of a batch has a seed of its own.

transformers draws from one global stream, so a row's text depends on its neighbours. Here a row
gives the same tokens alone, in any batch and at any place in it.

Shapes: B batch, E vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from .input_errors import InvalidModelInputError


class SeededRowSampling(LogitsProcessor):
    """Turn greedy decoding into sampling with one seed per row (Gumbel-max).

    Use one object per `generate` call, last in `logits_processor`, with `do_sample=False`:
    arg max of (logits + Gumbel noise) is a draw from softmax(logits).

    Args:
        seeds: one per row.
        warpers: temperature, top-p and the like, applied before the noise.

    Raises:
        InvalidModelInputError: the batch does not have one row per seed.
    """

    def __init__(self, seeds: Sequence[int], warpers: LogitsProcessorList | None = None) -> None:
        # On the CPU, so that a seed means the same on every device.
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._warpers = warpers or LogitsProcessorList()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores [B, E] whose arg max is the sampled token."""
        if scores.shape[0] != len(self._generators):
            raise InvalidModelInputError(
                f"{len(self._generators)} seeds for {scores.shape[0]} rows",
                hint="Pass one seed per row.",
            )
        warped = self._warpers(input_ids, scores).float()
        uniform = torch.stack(
            [torch.rand(scores.shape[1], generator=each) for each in self._generators]
        )
        # Kept above 0, or a token with probability 0 could win with infinite noise.
        uniform = uniform.clamp(min=torch.finfo(torch.float32).tiny).to(warped.device)
        return warped - (-uniform.log()).log()
