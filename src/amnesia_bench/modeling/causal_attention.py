"""Causal attention of new tokens behind cached ones, without a mask of T x L.

transformers' sdpa builds that mask for every piece of a chunked prefill: 4 GB for 16K new tokens
at 256K. Here a flag of the kernel replaces it. Importing this module registers the function and
its mask with transformers, for any model, as `attn_implementation="causal_sdpa"`; and documents
packed in a row, for models that hand their keyword arguments on to attention, as "packed_sdpa".

Shapes: B batch, T new tokens, L all tokens, H query heads, G key/value heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .packing import PackedRows

CAUSAL_SDPA = "causal_sdpa"
PACKED_SDPA = "packed_sdpa"


def causal_sdpa(  # noqa: PLR0913 - transformers' attention interface
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend with torch's fused kernels; without a mask, causally and to all of the past.

    On CUDA nothing of size T x L is made in half precision, on a CPU nothing of that size in any,
    unless there are gradients.

    Args:
        module: the caller.
        query: [B, H, T, D].
        key: [B, G, L, D], the new tokens last.
        value: [B, G, L, D].
        attention_mask: [B, 1, T, L], or None for causal without padding.
        scaling: factor on the logits; D^-1/2 when None.
        dropout: probability, in training.
        **options: for transformers' own function.

    Returns:
        The output [B, T, H, D], and None: fused kernels give no weights.
    """
    num_new, num_all = query.shape[2], key.shape[2]
    causal = options.get("is_causal") is not False and getattr(module, "is_causal", True)
    if attention_mask is not None or num_new in (1, num_all) or not causal:
        output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return output
    if query.is_cpu and not torch.is_grad_enabled() and query.shape[-1] == value.shape[-1]:
        return _past_and_new(query, key, value, scaling).transpose(1, 2).contiguous(), None
    mixed = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=causal_lower_right(num_new, num_all),
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2).contiguous(), None


def _past_and_new(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Attend on a CPU, where torch would make a mask of the flag: T x L bytes and floats of it.

    All of the past is seen, so it needs no mask, and none among the new tokens but `is_causal`.
    The two are weighed by their shares of the softmax's denominator.

    Returns:
        [B, H, T, D].
    """
    num_rows, num_heads, num_new, width = query.shape
    groups, past = key.shape[1], key.shape[2] - num_new
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    # The query heads of a key/value head as more of its queries: the past is not repeated.
    folded = query.reshape(num_rows, groups, -1, width)
    before, log_before = attend(folded, key[:, :, :past], value[:, :, :past], scale=scaling)
    repeats = num_heads // groups
    keys, values = (x[:, :, past:].repeat_interleave(repeats, dim=1) for x in (key, value))
    among, log_among = attend(query, keys, values, is_causal=True, scale=scaling)
    share = (log_among - log_before.reshape(log_among.shape)).sigmoid()[..., None]
    mixed: Tensor = before.reshape(query.shape).lerp(among, share.to(query.dtype))
    return mixed


def causal_sdpa_mask(**call: Any) -> Tensor | None:
    """Return the mask that `causal_sdpa` needs: none where plain causality is all it would say.

    Takes the arguments of transformers' mask functions; padding, windows and patterns of a
    model's own still get a mask.
    """
    if is_plainly_causal(**call):
        return None
    mask: Tensor | None = sdpa_mask(**call)
    return mask


def is_plainly_causal(**call: Any) -> bool:
    """Whether the mask of these arguments of transformers' mask functions is causality alone."""
    padding = call.get("attention_mask")
    return (
        call.get("allow_is_causal_skip", True)
        and call.get("local_size") is None
        and call.get("kv_offset", 0) == 0
        and call.get("q_offset", 0) + call["q_length"] == call["kv_length"]
        and (padding is None or bool(padding.all()))
    )


def packed_sdpa(  # noqa: PLR0913 - transformers' attention interface
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedRows | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend causally, each document of `packed` to itself alone: [B, T, H, D], as `causal_sdpa`.

    There is no mask but that of a window, as large as a document: rows must hold no padding but
    what is a document of its own.
    """
    qkv = (query, key, value)
    rows = ((x,) if packed is None else packed.split(x, dim=2) for x in qkv)
    outputs = []
    for q, k, v in zip(*rows, strict=True):
        mask = _window(q.shape[2], sliding_window, query.device)
        outputs.append(causal_sdpa(module, q, k, v, mask, **options)[0])
    return torch.cat(outputs, dim=1), None


def _window(tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return where a window lets tokens look [1, 1, T, T]; None where it holds the document."""
    if window is None or tokens <= window:
        return None
    position = torch.arange(tokens, device=device)
    back = position[:, None] - position
    return ((back >= 0) & (back < window))[None, None]


AttentionInterface.register(CAUSAL_SDPA, causal_sdpa)
# Without a mask function of that name, transformers makes none: of T x T for packed rows.
AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(CAUSAL_SDPA, causal_sdpa_mask)
