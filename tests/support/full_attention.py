"""Full attention matrices with autograd, as an attention function of transformers: for references.

Nothing here is shared with what is tested: logits, masks and softmax are written out whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "full_matrices_for_tests"
LOWEST = -1e30
# layer -> the logits [B, H, T, T] of each call of a forward, which can be differentiated.
_logits: dict[int, list[Tensor]] = defaultdict(list)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scaling = options.get("scaling")
    logits = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is None:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    # Finite, or the gradient of a query that sees nothing would be NaN.
    logits = logits.masked_fill(~mask, LOWEST)
    if logits.requires_grad:
        logits.retain_grad()
    _logits[module.layer_idx].append(logits)
    weights = logits.softmax(dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


@contextmanager
def full_logits(model: Any) -> Iterator[dict[int, list[Tensor]]]:
    """Collect the masked logits of every softmax layer inside the block."""
    before = model.config._attn_implementation
    _logits.clear()
    model.set_attn_implementation(NAME)
    yield _logits
    model.set_attn_implementation(before)


def histogram(values: Tensor) -> Tensor:
    """Add up [..., T, T] by the distance of query and key: [T]."""
    tokens = values.shape[-1]
    return torch.stack([values.diagonal(-d, -2, -1).sum() for d in range(tokens)])


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
