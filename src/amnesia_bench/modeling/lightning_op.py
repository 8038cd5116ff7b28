"""Lightning attention as a custom op of PyTorch: one node of a compiled graph.

On CUDA the op launches fla's kernels (`lightning_fla`). On a CPU it computes the same with
`lightning_torch`, so that code that is compiled for CUDA can be compiled, run and tested without a
GPU. For fake tensors it only derives shapes.

The boundaries of packed documents enter as tensors (`PackedRows`), and only their shapes decide
what is launched. So neither direction copies a value from the device, and a compiled graph stays
valid for other boundaries.

Shapes are those of `lightning_attention`; N rows or documents, C chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .lightning_fla import DocumentTables, fla_backward, fla_forward
from .lightning_torch import torch_lightning, torch_lightning_backward
from .packing import ChunkTable, PackedRows

Qkv = tuple[Tensor, Tensor, Tensor]


def lightning_by_op(
    qkv: Qkv,
    log_decay: Tensor,
    scale: float,
    initial_state: Tensor | None,
    packed: PackedRows | None,
) -> tuple[Tensor, Tensor]:
    """Call the op; returns the outputs in the dtype of q, and the states in float32.

    q, k and v are bfloat16 or float32, and the other operands are float32. The log decay gets no
    gradient.
    """
    result: tuple[Tensor, Tensor] = _lightning(
        *qkv,
        log_decay,
        scale,
        initial_state,
        None if packed is None else packed.cu_seqlens,
        None if packed is None else packed.chunks.index,
        None if packed is None else packed.chunks.offsets,
    )
    return result


@torch.library.custom_op("amnesia_bench::lightning", mutates_args=(), device_types="cuda")
def _lightning(  # noqa: PLR0913 - the schema of an op has no records
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scale: float,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_index: Tensor | None,
    chunk_offsets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    documents = _documents(cu_seqlens, chunk_index, chunk_offsets)
    return fla_forward((q, k, v), log_decay, scale, state, documents)


@torch.library.custom_op("amnesia_bench::lightning_backward", mutates_args=(), device_types="cuda")
def _lightning_backward(  # noqa: PLR0913 - the schema of an op has no records
    grad: Tensor,
    grad_state: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scale: float,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_index: Tensor | None,
    chunk_offsets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and of the initial state (an empty tensor if it is None)."""
    documents = _documents(cu_seqlens, chunk_index, chunk_offsets)
    return fla_backward((grad, grad_state), (q, k, v), log_decay, scale, state, documents)


@_lightning.register_kernel("cpu")
def _on_cpu(  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scale: float,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    *_: Tensor | None,
) -> tuple[Tensor, Tensor]:
    qkv = q.float(), k.float(), v.float()
    output, end = torch_lightning(qkv, log_decay, scale, state, _packed(cu_seqlens))
    return output.to(q.dtype).contiguous(), end.contiguous()


@_lightning_backward.register_kernel("cpu")
def _backward_on_cpu(  # noqa: PLR0913
    grad: Tensor,
    grad_state: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scale: float,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    *_: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    qkv = q.float(), k.float(), v.float()
    gradients = torch_lightning_backward(
        (grad.float(), grad_state), qkv, log_decay, scale, state, _packed(cu_seqlens)
    )
    dq, dk, dv = (x.to(q.dtype).contiguous() for x in gradients[:3])
    return dq, dk, dv, q.new_empty(0) if state is None else gradients[3].contiguous()


@_lightning.register_fake
def _shapes(  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scale: float,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    *_: Tensor | None,
) -> tuple[Tensor, Tensor]:
    states = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    end = q.new_empty(states, *q.shape[2:], v.shape[3], dtype=torch.float32)
    return q.new_empty(v.shape), end


@_lightning_backward.register_fake
def _shapes_of_gradients(
    grad: Tensor, grad_state: Tensor | None, *operands: Any
) -> tuple[Tensor, ...]:
    q, k, v, _, _, state = operands[:6]
    initial = q.new_empty(0) if state is None else state.new_empty(state.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), initial


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, log_decay, ctx.scale, *rest = inputs
    ctx.save_for_backward(q, k, v, log_decay, *rest)
    # Without this, the state of a layer without a cache would get a gradient of zeros.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_state: Tensor | None) -> tuple[Any, ...]:
    q, k, v, log_decay, state, *rows = ctx.saved_tensors
    grad = torch.zeros_like(v) if grad is None else grad
    dq, dk, dv, initial = _lightning_backward(
        grad, grad_state, q, k, v, log_decay, ctx.scale, state, *rows
    )
    return dq, dk, dv, None, None, None if state is None else initial, None, None, None


_lightning.register_autograd(_backward, setup_context=_save)


def _documents(
    cu_seqlens: Tensor | None, index: Tensor | None, offsets: Tensor | None
) -> DocumentTables | None:
    if cu_seqlens is None or index is None or offsets is None:
        return None
    return DocumentTables(cu_seqlens, ChunkTable(index, offsets))


def _packed(cu_seqlens: Tensor | None) -> PackedRows | None:
    if cu_seqlens is None:
        return None
    return PackedRows.from_bounds(tuple(cu_seqlens.tolist()), cu_seqlens.device)
