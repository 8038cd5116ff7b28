"""The gated delta rule on CUDA as custom ops of PyTorch: nodes of a compiled graph.

The boundaries of packed documents enter as tensors, and only their shapes decide what is launched.

Shapes are those of `gated_delta_rule`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .gated_delta_fla import fla_delta_backward, fla_delta_forward, fla_delta_step
from .gated_delta_torch import DeltaInputs
from .packing import CHUNK, PackedRows


def gated_delta_by_op(
    inputs: DeltaInputs, scale: float, state: Tensor | None, packed: PackedRows | None
) -> tuple[Tensor, Tensor]:
    """Call the op for chunks, or the one for a single token per row.

    Queries and keys get the dtype of the values, decays and rates float32; states are float32.
    """
    q, k, v = (x.to(inputs.v.dtype) for x in inputs[:3])
    operands = (q, k, v, inputs.log_decay.float(), inputs.rate.float(), scale, state)
    has_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in operands[:5])
    if v.shape[1] == 1 and packed is None and not has_gradient:
        step: tuple[Tensor, Tensor] = _gated_delta_step(*operands)
        return step
    documents = (None, None) if packed is None else (packed.cu_seqlens, packed.chunks.index)
    result: tuple[Tensor, ...] = _gated_delta(*operands, *documents)
    return result[0], result[1]


@torch.library.custom_op("amnesia_bench::gated_delta_step", mutates_args=(), device_types="cuda")
def _gated_delta_step(  # noqa: PLR0913 - the schema of an op has no records
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    rate: Tensor,
    scale: float,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return fla_delta_step(DeltaInputs(q, k, v, log_decay, rate), scale, state)


@torch.library.custom_op("amnesia_bench::gated_delta", mutates_args=(), device_types="cuda")
def _gated_delta(  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    rate: Tensor,
    scale: float,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_index: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = DeltaInputs(q, k, v, log_decay, rate)
    output, end, sums, solution = fla_delta_forward(
        inputs, scale, state, _documents(cu_seqlens, chunk_index)
    )
    return output, end, sums, solution


@torch.library.custom_op(
    "amnesia_bench::gated_delta_backward", mutates_args=(), device_types="cuda"
)
def _gated_delta_backward(  # noqa: PLR0913
    grad: Tensor,
    grad_state: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    rate: Tensor,
    sums: Tensor,
    solution: Tensor,
    scale: float,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_index: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = DeltaInputs(q, k, v, log_decay, rate)
    documents = _documents(cu_seqlens, chunk_index)
    dq, dk, dv, ddecay, drate, initial = fla_delta_backward(
        (grad, grad_state), inputs, (sums, solution), scale, state, documents
    )
    return dq, dk, dv, ddecay, drate, initial


@_gated_delta_step.register_fake
def _shapes_of_step(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), _state_like(q, v, q.shape[0])


@_gated_delta.register_fake
def _shapes(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    log_decay, cu_seqlens = rest[0], rest[-2]
    states = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return (
        v.new_empty(v.shape),
        _state_like(q, v, states),
        log_decay.new_empty(log_decay.shape),
        k.new_empty(*k.shape[:3], CHUNK),
    )


@_gated_delta_backward.register_fake
def _shapes_of_gradients(
    grad: Tensor, grad_state: Tensor | None, *operands: Any
) -> tuple[Tensor, ...]:
    state = operands[8]
    initial = (
        grad.new_empty(0, dtype=torch.float32) if state is None else state.new_empty(state.shape)
    )
    return *(x.new_empty(x.shape) for x in operands[:5]), initial


def _state_like(q: Tensor, v: Tensor, states: int) -> Tensor:
    return q.new_empty(states, *q.shape[2:], v.shape[3], dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, ctx.scale, state, cu_seqlens, chunk_index = inputs
    ctx.save_for_backward(*operands, *output[2:], state, cu_seqlens, chunk_index)
    # Without this, the state of a layer without a cache would get a gradient of zeros.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_state: Tensor | None, *_: Any) -> tuple[Any, ...]:
    *operands, state, cu_seqlens, chunk_index = ctx.saved_tensors
    grad = torch.zeros_like(operands[2]) if grad is None else grad
    *gradients, initial = _gated_delta_backward(
        grad, grad_state, *operands, ctx.scale, state, cu_seqlens, chunk_index
    )
    return *gradients, None, None if state is None else initial, None, None


_gated_delta.register_autograd(_backward, setup_context=_save)


def _documents(
    cu_seqlens: Tensor | None, chunk_index: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    return None if cu_seqlens is None or chunk_index is None else (cu_seqlens, chunk_index)
