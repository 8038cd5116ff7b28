"""Softmax attention, computed one block of queries at a time without storing a T x T tensor.

Shapes: B batch, T tokens, H query heads, G key/value heads, D head dim, R queries of a block,
E keys of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.masking_utils import sdpa_mask

from amnesia_bench.modeling.causal_attention import is_plainly_causal

_SUMMED_ROWS = 64


@dataclass(frozen=True, eq=False)
class RowBlock:
    """The values of a block of query-key pairs: softmax weights, or magnitudes of gradients.

    The block covers the queries [first_query, stop), the keys [first_key, stop), and consecutive
    heads from `first_head`. `values` is [B, heads, R, E]; it is zero for pairs that are not
    `visible` [B or 1, 1, R, E]. The pairs of a padding query are not visible.
    """

    layer: int
    first_head: int
    first_query: int
    first_key: int
    stop: int
    values: Tensor
    visible: Tensor


Consumer = Callable[[RowBlock], None]


class VisiblePairs(Protocol):
    """The query-key pairs that a mask allows."""

    def block(self, start: int, stop: int) -> tuple[int, Tensor]:
        """Return the first key visible to queries [start, stop), and the mask from that key on.

        The mask is bool [B or 1, 1, R, E], for the keys up to `stop`; True means visible.
        """
        ...


class CausalPairs:
    """The pairs of causal attention: a query sees the keys up to its own position."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def block(self, start: int, stop: int) -> tuple[int, Tensor]:
        key = torch.arange(stop, device=self._device)
        return 0, (key <= key[start:, None])[None, None]


class MaskedPairs:
    """The visible pairs of a transformers mask, which is built for one block of queries at a time.

    `call` contains the arguments of transformers' mask functions. They may describe padding,
    windows, packed documents and patterns specific to a model.
    """

    def __init__(self, call: dict[str, Any]) -> None:
        self._call = call | {"allow_is_causal_skip": False}

    def __getitem__(self, index: tuple[slice, ...]) -> MaskedPairs:
        """Return these pairs: Gemma 4 slices its masks to the queries to keep, which are all."""
        assert all(part in (slice(None), slice(0, None)) for part in index), index
        return self

    def block(self, start: int, stop: int) -> tuple[int, Tensor]:
        first = self._call.get("q_offset", 0) + start
        call = self._call | {"q_length": stop - start, "q_offset": first, "kv_length": stop}
        padding = call.get("attention_mask")
        if padding is not None:
            call["attention_mask"] = padding[:, :stop]
        visible = sdpa_mask(**call)
        assert visible is not None
        if padding is not None:
            visible = visible & padding[:, None, start:stop, None].bool()
        columns = visible.flatten(0, 2).any(dim=0).nonzero()
        first_key = int(columns[0]) if columns.numel() else start
        return first_key, visible[..., first_key:]


def visible_pairs(**call: Any) -> MaskedPairs | None:
    """Return the visible pairs of a forward pass, or None if its mask is purely causal.

    The signature is that of transformers' mask functions.
    """
    window = call.get("local_size")
    if window is not None and window >= call["kv_length"]:
        call["local_size"] = None
    return None if is_plainly_causal(**call) else MaskedPairs(call)


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The inputs of attention in one layer: query [B, H, T, D], key and value [B, G, T, D].

    The blocks begin at query `first_query`.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    pairs: VisiblePairs
    block_queries: int
    first_query: int = 0

    def weights(self) -> Iterator[RowBlock]:
        """Yield blocks of softmax weights, in float32 (float64 for float64 inputs)."""
        for block, _ in self._blocks():
            yield block

    def gradients(self, upstream: Tensor) -> Iterator[RowBlock]:
        """Yield blocks of |dL/ds|, where s are the logits after rotation, scale and mask.

        dL/ds_ij = alpha_ij (g_i . v_j - g_i . o_i), where g_i . o_i = sum_j alpha_ij g_i . v_j.

        Args:
            upstream: g, the gradient of the loss with respect to the output [B, H, T, D].
        """
        for block, heads in self._blocks():
            alpha = block.values
            g = upstream[:, heads, block.first_query : block.stop].to(alpha.dtype)
            v = self.value[:, self._group(heads), block.first_key : block.stop].to(alpha.dtype)
            dp = g @ v.mT
            dp -= (alpha * dp).sum(dim=-1, keepdim=True)
            yield RowBlock(
                layer=block.layer,
                first_head=block.first_head,
                first_query=block.first_query,
                first_key=block.first_key,
                stop=block.stop,
                values=dp.mul_(alpha).abs_(),
                visible=block.visible,
            )

    def _blocks(self) -> Iterator[tuple[RowBlock, slice]]:
        num_heads, num_tokens = self.query.shape[1:3]
        shared = num_heads // self.key.shape[1]
        precise = torch.float64 if self.query.dtype == torch.float64 else torch.float32
        for start in range(self.first_query, num_tokens, self.block_queries):
            stop = min(start + self.block_queries, num_tokens)
            first_key, visible = self.pairs.block(start, stop)
            hidden, empty = ~visible, not bool(visible.any(dim=-1).all())
            for first_head in range(0, num_heads, shared):
                heads = slice(first_head, first_head + shared)
                k = self.key[:, self._group(heads), first_key:stop].to(precise)
                logits = self.query[:, heads, start:stop].to(precise) @ k.mT
                logits = logits.mul_(self.scaling).masked_fill_(hidden, -torch.inf)
                alpha = logits.softmax(dim=-1)
                del logits
                if empty:  # a query without a visible key
                    alpha.nan_to_num_(nan=0.0)
                block = RowBlock(
                    layer=self.layer,
                    first_head=first_head,
                    first_query=start,
                    first_key=first_key,
                    stop=stop,
                    values=alpha,
                    visible=visible,
                )
                yield block, heads

    def _group(self, heads: slice) -> slice:
        group = heads.start * self.key.shape[1] // self.query.shape[1]
        return slice(group, group + 1)


def sums_by_distance(values: Tensor) -> Tensor:
    """Sum a block [..., R, E] along its diagonals; return the sums for distances 0, 1, 2, ...

    The sums are float64 [..., E]. The last query and the last key of the block have distance 0.
    Strides shift each row to the right by one more than the next row, which turns diagonals into
    columns.
    """
    queries, keys = values.shape[-2:]
    padded = torch.nn.functional.pad(values, (queries - 1, 0))
    outer = padded.stride()[:-2]
    size = (*values.shape[:-2], queries, keys)
    diagonals = padded.as_strided(size, (*outer, keys + queries, 1))
    sums = torch.zeros(*diagonals.shape[:-2], keys, dtype=torch.float64, device=values.device)
    # On a CPU, a float64 sum first copies its input. The copy of a few rows stays in the CPU cache.
    for start in range(0, queries, _SUMMED_ROWS):
        rows = diagonals[..., start : start + _SUMMED_ROWS, :]
        sums += rows.sum(dim=-2, dtype=torch.float64)
    return sums.flip(-1)
