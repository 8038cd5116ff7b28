"""Softmax attention within a sliding window: a token attends to itself and to W - 1 tokens before.

The window counts tokens of the same row and document, not columns. So each column has a position,
and positions of other documents or of padding are further away than the window. One comparison of
positions then hides later tokens, tokens outside the window, other documents and padding.

Shapes: B batch (or 1), T new tokens, L stored tokens, S = L + T tokens, H query heads, G key/value
heads, D head dim, W window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .token_layout import TokenLayout

Attend = Callable[..., tuple[Tensor, Tensor | None]]
# Queries are processed in blocks of at least this many, so that small windows cost few calls.
_BLOCK_QUERIES = 256


@dataclass(frozen=True)
class SlidingWindow:
    """The window of one forward pass, which all sliding-window layers share.

    Without padding and packed documents, `positions` are None: columns are positions.
    """

    size: int
    positions: Tensor | None  # [B or 1, S]
    padding_mask: Tensor | None  # [B, S] bool, False for padding; None without padding
    keep: int  # the number of columns that later tokens may attend to

    @classmethod
    def of(cls, layout: TokenLayout, size: int, stored: int, num_tokens: int) -> SlidingWindow:
        """Return the window of `num_tokens` new tokens after `stored` columns of the cache."""
        columns = stored + num_tokens
        if layout.packed is not None:
            # Each document starts a window later than the end of the one before it.
            document = layout.packed.document_numbers()
            column = torch.arange(num_tokens, device=document.device)
            positions = (column + size * document)[None]
            return cls(size, positions, None, keep=0)
        if layout.attention_mask is None:
            return cls(size, None, None, keep=size - 1)
        valid = layout.attention_mask[:, -columns:]
        column = torch.arange(columns, device=valid.device)
        # A padding token sees only itself, since softmax over no token would be NaN.
        positions = torch.where(valid, valid.long().cumsum(dim=1) - 1, -(column + 1) * size)
        if layout.left_padded:
            return cls(size, positions, valid, keep=size - 1)
        rank = valid.long().flip(1).cumsum(dim=1).flip(1)  # 1 for the last token of a row
        needed = (valid & (rank < size)).any(dim=0).nonzero()
        keep = columns - int(needed[0]) if len(needed) else 0
        return cls(size, positions, valid, keep)

    def mask(self, queries: slice, keys: slice, offset: int, device: torch.device) -> Tensor:
        """Return whether queries attend to keys, bool [B or 1, 1, T, S], for ranges of both.

        The query t is the column `offset` + t.
        """
        columns = slice(queries.start + offset, queries.stop + offset)
        if self.positions is None:
            query = torch.arange(columns.start, columns.stop, device=device)[None]
            key = torch.arange(keys.start, keys.stop, device=device)[None]
        else:
            query, key = self.positions[:, columns], self.positions[:, keys]
        distance = query[:, None, :, None] - key[:, None, None, :]
        return (distance >= 0) & (distance < self.size)


def attend_in_window(
    attend: Attend,
    qkv: tuple[Tensor, Tensor, Tensor],
    window: SlidingWindow,
    additive: bool,
) -> Tensor:
    """Attend block by block: O(T W) time, and no mask of T x S.

    Args:
        attend: computes (output [B, T, H, D], weights) from q, k, v and a mask or None.
        qkv: queries [B, H, T, D], and keys and values [B, G, S, D].
        window: the window.
        additive: whether `attend` adds its mask to the logits.

    Returns:
        The output [B, T, H, D].
    """
    q, k, v = qkv
    num_new, columns = q.shape[2], k.shape[2]
    offset = columns - num_new
    if window.positions is None and columns <= window.size and not additive:
        return attend(q, k, v, None)[0]
    size = max(window.size, _BLOCK_QUERIES)
    outputs = []
    for start in range(0, num_new, size):
        queries = slice(start, min(start + size, num_new))
        # Padding between the tokens of a row makes the window wider than W columns.
        first = 0 if window.padding_mask is not None else offset + start - window.size + 1
        keys = slice(max(0, first), offset + queries.stop)
        mask = window.mask(queries, keys, offset, q.device)
        if additive:
            mask = additive_mask(mask, q.dtype)
        outputs.append(attend(q[:, :, queries], k[:, :, keys], v[:, :, keys], mask)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros where attention is allowed, and elsewhere the lowest number of the dtype."""
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill(~allowed, torch.finfo(dtype).min)
