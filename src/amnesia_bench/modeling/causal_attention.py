"""Causal attention of new tokens after cached ones, without a T x L mask.

transformers' sdpa builds such a mask for every chunk of a chunked prefill: 4 GB for 16K new tokens
in a context of 256K. Here a flag of the kernel replaces the mask. Importing this module registers
two attention implementations with transformers: "causal_sdpa", with a mask function, for any model;
and "packed_sdpa", for packed documents in models that pass keyword arguments on to attention.

Shapes: B batch, T new tokens, L all tokens, H query heads, G key/value heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .packed_attention_op import packed_attention_by_op, window_mask
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
    """Compute softmax attention with torch's fused kernels.

    Without a mask, each new token attends to all cached tokens and causally to the new ones. No
    tensor of size T x L is then allocated on CUDA in half precision, nor on a CPU in any precision
    unless gradients are enabled.

    Args:
        module: the calling module.
        query: queries [B, H, T, D].
        key: keys [B, G, L, D], with those of the new tokens last.
        value: values [B, G, L, D], in the same order.
        attention_mask: mask [B, 1, T, L], or None for causal attention without padding.
        scaling: factor on the logits; D^-1/2 when None.
        dropout: dropout probability in training.
        **options: keyword arguments for transformers' own function.

    Returns:
        The output [B, T, H, D], and None, since fused kernels return no attention weights.
    """
    num_new, num_all = query.shape[2], key.shape[2]
    if attention_mask is not None and num_new == 1 and query.shape[1] != key.shape[1]:
        return _one_token(query, key, value, attention_mask, scaling, dropout), None
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


def _one_token(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Attend from one new token per row to all keys under a mask; return [B, 1, H, D].

    On CUDA, torch's kernels for grouped heads take no mask, so transformers before 5.23 repeats all
    cached keys and values for every layer and token. Here the query heads that share a key/value
    head are treated as additional queries of that head, as transformers 5.23 does.
    """
    num_rows, num_heads, _, width = query.shape
    groups = key.shape[1]
    if mask.shape[1] != 1:  # one mask per query head
        mask = mask.reshape(num_rows, groups, num_heads // groups, -1)
    mixed = nn.functional.scaled_dot_product_attention(
        query.reshape(num_rows, groups, num_heads // groups, width),
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return mixed.reshape(num_rows, num_heads, 1, -1).transpose(1, 2).contiguous()


def _past_and_new(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Attend to cached and new tokens in separate kernel calls on a CPU, and combine the outputs.

    With `causal_lower_right`, torch would allocate T x L masks of bytes and of floats on a CPU. The
    cached tokens need no mask, since every new token attends to all of them, and for the new tokens
    `is_causal` suffices. Each output is weighted by its share of the softmax denominator.

    Returns:
        The output [B, H, T, D].
    """
    num_rows, num_heads, num_new, width = query.shape
    groups, past = key.shape[1], key.shape[2] - num_new
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    # The query heads that share a key/value head are treated as additional queries of that head, so
    # the cached keys and values need not be repeated.
    folded_query = query.reshape(num_rows, groups, -1, width)
    past_output, past_logsumexp = attend(
        folded_query, key[:, :, :past], value[:, :, :past], scale=scaling
    )
    repeats = num_heads // groups
    keys, values = (x[:, :, past:].repeat_interleave(repeats, dim=1) for x in (key, value))
    new_output, new_logsumexp = attend(query, keys, values, is_causal=True, scale=scaling)
    new_share = (new_logsumexp - past_logsumexp.reshape(new_logsumexp.shape)).sigmoid()[..., None]
    output: Tensor = past_output.reshape(query.shape).lerp(new_output, new_share.to(query.dtype))
    return output


def causal_sdpa_mask(**call: Any) -> Tensor | None:
    """Return the mask for `causal_sdpa`, or None if the mask would be purely causal.

    The arguments are those of transformers' mask functions. Padding, sliding windows and
    model-specific patterns still need a mask.
    """
    if is_plainly_causal(**call):
        return None
    if call["q_length"] == 1 and call.get("attention_mask") is not None:
        call["allow_is_causal_skip"] = False  # otherwise `sdpa_mask` would look for padding
    mask: Tensor | None = sdpa_mask(**call)
    return mask


def padded_causal_mask(valid: Tensor, num_new: int) -> Tensor:
    """Return the causal mask of the last `num_new` tokens of a padded batch.

    Args:
        valid: whether each cached or new token is not padding, bool [B, L].
        num_new: number of new tokens T.

    Returns:
        The mask [B, 1, T, L], True for the pairs of a query and a key that it may attend to.
    """
    column = torch.arange(valid.shape[1], device=valid.device)
    return (column <= column[-num_new:, None]) & valid[:, None, None]


def is_plainly_causal(**call: Any) -> bool:
    """Return whether transformers' mask for these arguments would be purely causal.

    If a decode step passes a padding mask, the answer is no without a look at its values, for which
    the host would wait until the device is idle, at every token.
    """
    padding = call.get("attention_mask")
    if padding is not None and call["q_length"] == 1:
        return False
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
    """Attend causally within each document of `packed`; return the output [B, T, H, D] and None.

    The arguments are those of `causal_sdpa`, but `attention_mask` is ignored. On CUDA in half
    precision, one flash kernel attends to all documents. Otherwise they are attended one by one,
    with a mask for a sliding window only. Rows must not contain padding, unless it is a separate
    document.
    """
    qkv, scaling = (query, key, value), options.get("scaling")
    if packed is not None and not options.get("dropout"):
        if has_varlen_kernel(query, value):
            return _by_varlen_kernel(qkv, packed, scaling, sliding_window), None
        if query.is_cpu and torch.compiler.is_compiling():
            return packed_attention_by_op(qkv, packed.cu_seqlens, scaling, sliding_window), None
    rows = ((x,) if packed is None else packed.split(x, dim=2) for x in qkv)
    outputs = []
    for q, k, v in zip(*rows, strict=True):
        mask = window_mask(q.shape[2], sliding_window, query.device)
        outputs.append(causal_sdpa(module, q, k, v, mask, **options)[0])
    return torch.cat(outputs, dim=1), None


def has_varlen_kernel(query: Tensor, value: Tensor) -> bool:
    """Return whether torch's flash kernel for packed documents takes such queries and values."""
    size = query.shape[-1]
    half = query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and half and size == value.shape[-1] and size % 8 == 0 and size <= 256


def _by_varlen_kernel(
    qkv: tuple[Tensor, Tensor, Tensor],
    packed: PackedRows,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attend within all documents by one kernel call; return the output [1, T, H, D].

    The boundaries are a tensor and the longest document is a number on the host, so the call waits
    for no copy from the device. Compiled code calls it with the length of the row, an upper bound,
    so that it is valid for all boundaries; the kernel then starts blocks that end at once.
    """
    longest = packed.num_tokens if torch.compiler.is_compiling() else packed.longest
    # The flash kernel counts the tokens before the query, -1 for all of them.
    before = -1 if window is None or window >= longest else window - 1
    # The layout [T, H, D] of the projections, so `contiguous` usually copies nothing.
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in qkv)
    output: Any = varlen_attn(
        q,
        k,
        v,
        packed.cu_seqlens,
        packed.cu_seqlens,
        longest,
        longest,
        scale=scaling,
        window_size=(before, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    row: Tensor = output[None]
    return row


AttentionInterface.register(CAUSAL_SDPA, causal_sdpa)
# No mask function is registered under this name, so transformers builds no T x T mask for packed
# rows.
AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(CAUSAL_SDPA, causal_sdpa_mask)
