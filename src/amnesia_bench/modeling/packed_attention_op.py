"""Softmax attention within packed documents on a CPU, as a custom op of PyTorch.

Compiled code calls this op. A loop over documents would be unrolled, and compiled for each batch
again. The boundaries enter as a tensor, so compiled code is valid for all boundaries.

Shapes: T tokens, H query heads, G key/value heads, D head dim, N documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .precision import precise_dtype

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def packed_attention_by_op(
    qkv: tuple[Tensor, Tensor, Tensor],
    cu_seqlens: Tensor,
    scale: float | None,
    window: int | None = None,
) -> Tensor:
    """Attend causally within each document; return the output [1, T, H, D].

    Args:
        qkv: queries [1, H, T, D], keys and values [1, G, T, D].
        cu_seqlens: boundaries of the documents [N + 1], from 0 to T.
        scale: factor on the logits; D^-1/2 when None.
        window: number of tokens that a token attends to, including itself; all when None.
    """
    scale = qkv[0].shape[-1] ** -0.5 if scale is None else scale
    output: Tensor = _packed_attention(*qkv, cu_seqlens, scale, window)[0]
    return output.transpose(1, 2)


def window_mask(tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the mask [1, 1, T, T] of a sliding window, or None if it covers all T tokens."""
    if window is None or tokens <= window:
        return None
    position = torch.arange(tokens, device=device)
    distance = position[:, None] - position
    return ((distance >= 0) & (distance < window))[None, None]


@torch.library.custom_op("amnesia_bench::packed_attention", mutates_args=(), device_types="cpu")
def _packed_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """Return the outputs [1, H, T, D], and the logarithms of the softmax denominators [1, H, T]."""
    output, log_sums = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=precise_dtype(q.dtype))
    operands = (q, *_repeated(q, k, v))
    for tokens, options in _documents(q, cu_seqlens, scale, window):
        parts = (x[:, :, tokens] for x in operands)
        output[:, :, tokens], log_sums[:, :, tokens] = _attend(*parts, **options)
    return output, log_sums


@torch.library.custom_op(
    "amnesia_bench::packed_attention_backward", mutates_args=(), device_types="cpu"
)
def _packed_attention_backward(  # noqa: PLR0913 - the schema of an op has no records
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    log_sums: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    operands = (grad, q, *_repeated(q, k, v), output, log_sums)
    gradients = [torch.empty_like(q) for _ in range(3)]
    for tokens, options in _documents(q, cu_seqlens, scale, window):
        parts = (x[:, :, tokens] for x in operands)
        found = _attend_backward(*parts, 0.0, **options)
        for gradient, part in zip(gradients, found, strict=True):
            gradient[:, :, tokens] = part
    dq, dk, dv = gradients
    groups = k.shape[1]
    return dq, *(x.unflatten(1, (groups, -1)).sum(2) for x in (dk, dv))


@_packed_attention.register_fake
def _shapes(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=precise_dtype(q.dtype))


@_packed_attention_backward.register_fake
def _shapes_of_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    gradients = _packed_attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.window)
    return *gradients, None, None, None


_packed_attention.register_autograd(_backward, setup_context=_save)


def _documents(
    q: Tensor, cu_seqlens: Tensor, scale: float, window: int | None
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Yield the tokens of each document, and the options of the kernel for it."""
    for start, stop in itertools.pairwise(cu_seqlens.tolist()):
        mask = window_mask(stop - start, window, q.device)
        if mask is not None:
            mask = q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        yield (
            slice(start, stop),
            {"is_causal": mask is None, "attn_mask": mask, "scale": scale},
        )


def _repeated(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    repeats = q.shape[1] // k.shape[1]
    return k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
