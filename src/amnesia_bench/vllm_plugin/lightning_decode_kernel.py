"""The Triton kernel of `lightning_decode`; only machines with Triton import this module."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# Values of a head per program. With K = V = 128, four programs per head read 16 KiB each.
BLOCK_VALUES = 32


@triton.jit
def decode_kernel(  # noqa: PLR0913 - a kernel has no records
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    slots: Any,
    is_first: Any,
    cache: Any,
    output: Any,
    scale: Any,
    q_stride: Any,
    k_stride: Any,
    v_stride: Any,
    slot_stride: Any,
    cache_stride: Any,
    output_stride: Any,
    GROUPS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
) -> None:
    """Update the state of one head of one request, for a block of values."""
    request, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots + request * slot_stride).to(tl.int64)
    if slot >= 0:
        group = head // GROUPS
        key = tl.arange(0, BLOCK_KEYS)
        value = block * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES)
        key_mask, value_mask = key < KEY_DIM, value < VALUE_DIM
        mask = key_mask[:, None] & value_mask[None, :]
        row = request.to(tl.int64)
        q_row = tl.load(q + row * q_stride + head * KEY_DIM + key, mask=key_mask, other=0.0)
        k_row = tl.load(k + row * k_stride + group * KEY_DIM + key, mask=key_mask, other=0.0)
        v_row = tl.load(v + row * v_stride + group * VALUE_DIM + value, mask=value_mask, other=0.0)
        place = cache + slot * cache_stride + head * KEY_DIM * VALUE_DIM
        place = place + key[:, None] * VALUE_DIM + value[None, :]
        has_state = tl.load(is_first + request) == 0
        state = tl.load(place, mask=mask & has_state, other=0.0)
        gamma = tl.exp(tl.load(log_decay + head))
        state = gamma * state + k_row.to(tl.float32)[:, None] * v_row.to(tl.float32)[None, :]
        tl.store(place, state, mask=mask)
        mixed = tl.sum(q_row.to(tl.float32)[:, None] * state, axis=0) * scale
        target = output + row * output_stride + head * VALUE_DIM + value
        tl.store(target, mixed.to(output.dtype.element_ty), mask=value_mask)
