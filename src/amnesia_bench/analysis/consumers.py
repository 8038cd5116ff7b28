"""Consumers of a probe's blocks, which accumulate histograms, head statistics or pooled maps.

Shapes: B batch, T tokens, H query heads, R queries of a block, E keys of a block, S map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amnesia_bench.analysis.row_blocks import RowBlock, sums_by_distance


class DistanceHistogram:
    """Sums of the values of query-key pairs at each distance, in float64.

    Attributes:
        sums: maps each layer to [H, T], the sums over all pairs at distances 0, 1, 2, ...
        pairs: maps each layer to [T], the number of visible pairs per head at each distance.
    """

    def __init__(self, num_heads: int, tokens: int) -> None:
        self._shape = (num_heads, tokens)
        self.sums: dict[int, Tensor] = {}
        self.pairs: dict[int, Tensor] = {}

    def __call__(self, block: RowBlock) -> None:
        """Add the values and pairs of a block to the sums."""
        values = sums_by_distance(block.values).sum(dim=0)  # [heads, E]
        heads = slice(block.first_head, block.first_head + values.shape[0])
        reach = slice(0, values.shape[1])
        device = values.device
        if block.layer not in self.sums:
            self.sums[block.layer] = torch.zeros(self._shape, dtype=torch.float64, device=device)
            self.pairs[block.layer] = torch.zeros(
                self._shape[1], dtype=torch.float64, device=device
            )
        self.sums[block.layer][heads, reach] += values
        if block.first_head == 0:
            visible = sums_by_distance(block.visible.float()).sum(dim=(0, 1))
            # If all rows of a batch have the same visible pairs, `visible` stores them only once.
            times = block.values.shape[0] // block.visible.shape[0]
            self.pairs[block.layer][reach] += visible * times


@dataclass(frozen=True)
class HeadTotals:
    """Sums over the queries of a layer for each head [H]; `queries` [1] is their number."""

    distance: Tensor
    entropy: Tensor
    needle: Tensor
    queries: Tensor


class HeadStatistics:
    """Mean attention distance (Eq. 17) and entropy of each head, and its needle mass.

    The needle mass is the total attention weight of the prompt's last query on the needle.

    Args:
        num_heads: number of heads per layer.
        tokens: length of the prompt.
        needle: index of the needle's first token, and one past its last; None without a needle.
    """

    def __init__(self, num_heads: int, tokens: int, needle: tuple[int, int] | None) -> None:
        self._num_heads, self._tokens, self._needle = num_heads, tokens, needle
        self._totals: dict[int, HeadTotals] = {}

    def __call__(self, block: RowBlock) -> None:
        """Add the statistics of a block of softmax weights."""
        alpha = block.values
        if block.layer not in self._totals:
            zeros = [
                torch.zeros(n, dtype=torch.float64, device=alpha.device)
                for n in (*3 * [self._num_heads], 1)
            ]
            self._totals[block.layer] = HeadTotals(*zeros)
        totals = self._totals[block.layer]
        heads = slice(block.first_head, block.first_head + alpha.shape[1])
        by_distance = sums_by_distance(alpha).sum(dim=0)  # [heads, E]
        distance = torch.arange(by_distance.shape[1], device=alpha.device, dtype=torch.float64)
        totals.distance[heads] += by_distance @ distance
        entropy = -torch.xlogy(alpha, alpha)
        totals.entropy[heads] += entropy.sum(dim=(0, 2, 3), dtype=torch.float64)
        if self._needle is not None and block.stop == self._tokens:
            first, end = (max(edge - block.first_key, 0) for edge in self._needle)
            totals.needle[heads] += alpha[:, :, -1, first:end].sum(dim=(0, 2), dtype=torch.float64)
        if block.first_head == 0:
            times = alpha.shape[0] // block.visible.shape[0]
            totals.queries.add_(block.visible.any(dim=-1).sum() * times)

    def means(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the distance in tokens, entropy in nats and needle mass of a layer, each [H]."""
        totals = self._totals[layer]
        return (
            (totals.distance / totals.queries).cpu(),
            (totals.entropy / totals.queries).cpu(),
            totals.needle.cpu(),
        )


class PooledMaps:
    """Attention maps of chosen heads, max-pooled block by block to at most S x S.

    Args:
        heads: the chosen heads, as pairs of layer and head indices.
        tokens: length of the prompt.
        size: maximum number of rows and columns of a map; S is at most this.
    """

    def __init__(self, heads: Sequence[tuple[int, int]], tokens: int, size: int) -> None:
        self._size, self._tokens = min(size, tokens), tokens
        self.maps = {key: torch.zeros(self._size, self._size) for key in heads}

    def __call__(self, block: RowBlock) -> None:
        """Add a block of softmax weights, for a batch of one prompt."""
        for (layer, head), pooled in self.maps.items():
            within = head - block.first_head
            if layer != block.layer or not 0 <= within < block.values.shape[1]:
                continue
            alpha = block.values[0, within].float()
            columns = self._bins(block.first_key, block.stop, alpha.device)
            by_column = alpha.new_zeros(alpha.shape[0], self._size).scatter_reduce_(
                1, columns.expand_as(alpha), alpha, "amax"
            )
            rows = self._bins(block.first_query, block.stop, torch.device("cpu"))
            pooled.scatter_reduce_(0, rows[:, None].expand(-1, self._size), by_column.cpu(), "amax")

    def _bins(self, start: int, stop: int, device: torch.device) -> Tensor:
        return torch.arange(start, stop, device=device) * self._size // self._tokens
