"""One decoding step of lightning attention for many requests, as a Triton kernel.

    S = gamma * S + k v^T        o = scale * q^T S

It updates the states within the cache, reads nothing back to the host, and so fits into a CUDA
graph. The same in PyTorch, for devices without Triton, is `torch_decode`.

Shapes: N requests, H heads, G key/value heads, K key dim, V value dim, P slots of the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DecodeInputs(NamedTuple):
    """The operands; q, k and v may be slices of wider rows, contiguous in their last two dims."""

    q: Tensor  # [N, H, K]
    k: Tensor  # [N, G, K]
    v: Tensor  # [N, G, V]
    log_decay: Tensor  # [H] float32
    slots: Tensor  # [N] int32; requests with a negative slot are skipped
    is_first: Tensor  # [N] bool: the state before this token is zero, whatever the slot contains


def torch_decode(inputs: DecodeInputs, scale: float, cache: Tensor, output: Tensor) -> None:
    """Update `cache` [P, H, K, V] float32 and write `output` [N, H, V]; no slot is negative."""
    slots = inputs.slots.long()
    groups = inputs.q.shape[1] // inputs.k.shape[1]
    q, k, v = (x.float() for x in (inputs.q, inputs.k, inputs.v))
    if groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    state = torch.where(inputs.is_first[:, None, None, None], 0.0, cache[slots])
    state = inputs.log_decay.exp()[:, None, None] * state + k[..., None] * v[..., None, :]
    cache[slots] = state
    output.copy_(torch.einsum("nhk,nhkv->nhv", q, state) * scale)


def triton_decode(inputs: DecodeInputs, scale: float, cache: Tensor, output: Tensor) -> None:
    """Do the same on a GPU; requests with a negative slot change nothing."""
    import triton

    from .lightning_decode_kernel import BLOCK_VALUES, decode_kernel

    q, k, v, log_decay, slots, is_first = inputs
    requests, heads, key_dim = q.shape
    assert all(x.stride(2) == 1 and x.stride(1) == x.shape[2] for x in (q, k, v, output))
    decode_kernel[(requests, heads, triton.cdiv(v.shape[2], BLOCK_VALUES))](
        q,
        k,
        v,
        log_decay,
        slots,
        is_first,
        cache,
        output,
        scale,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        slots.stride(0),
        cache.stride(0),
        output.stride(0),
        GROUPS=heads // k.shape[1],
        KEY_DIM=key_dim,
        VALUE_DIM=v.shape[2],
        BLOCK_KEYS=triton.next_power_of_2(key_dim),
        BLOCK_VALUES=BLOCK_VALUES,
    )
