"""Model the CUDA kernels of attention on tensors without data: their outputs, workspace and FLOPs.

On a GPU, softmax attention runs flash attention, and lightning attention runs fla's chunked
kernels. Neither exists on a CPU, whose own implementations allocate other tensors. The operations
here have no arithmetic: they return tensors of the right shape, save what the kernels save for the
backward pass, and state what the kernels allocate meanwhile.

Sources: ops/simple_gla/chunk.py and ops/common/chunk_{h,o}.py of fla 0.6; aten's
native/transformers/cuda/flash_attn/flash_api.cpp.

Shapes: B batch, T tokens, H query heads, G key/value heads, D head dim; for lightning attention
K key dim, V value dim, S states (one per chunk of 64 tokens and document).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from amnesia_bench.modeling import mixers
from amnesia_bench.modeling.packing import PackedRows

CHUNK_TOKENS = 64  # of fla's chunked kernels

_NO_DATA = "this operation models a kernel and computes nothing"


@torch.library.custom_op("amnesia_dry_run::flash", mutates_args=())
def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    raise NotImplementedError(_NO_DATA)


@_flash.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, _ = q.shape
    # The kernel writes [B, T, H, D], which PyTorch returns as a view [B, H, T, D].
    output = q.new_empty(batch, tokens, heads, v.shape[3]).transpose(1, 2)
    return output, q.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("amnesia_dry_run::flash_backward", mutates_args=())
def _flash_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    raise NotImplementedError(_NO_DATA)


@_flash_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save_flash(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate_flash(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    q, k, v, _, _ = ctx.saved_tensors
    return *_flash_backward(gradient, q, k, v, ctx.causal), None


_flash.register_autograd(_differentiate_flash, setup_context=_save_flash)


@torch.library.custom_op("amnesia_dry_run::lightning", mutates_args=())
def _lightning(q: Tensor, k: Tensor, v: Tensor, states: int, documents: int) -> list[Tensor]:
    raise NotImplementedError(_NO_DATA)


@_lightning.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, states: int, documents: int) -> list[Tensor]:
    heads, key_dim, value_dim = q.shape[2], q.shape[3], v.shape[3]
    state = q.new_empty(documents, heads, key_dim, value_dim, dtype=torch.float32)
    return [torch.empty_like(v), state]


@torch.library.custom_op("amnesia_dry_run::lightning_backward", mutates_args=())
def _lightning_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, states: int
) -> tuple[Tensor, Tensor, Tensor]:
    raise NotImplementedError(_NO_DATA)


@_lightning_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, states: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save_lightning(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    q, k, v, ctx.states, _ = inputs
    ctx.save_for_backward(q, k, v)


def _differentiate_lightning(ctx: Any, gradients: list[Tensor]) -> tuple[Tensor | None, ...]:
    return *_lightning_backward(gradients[0], *ctx.saved_tensors, ctx.states), None, None


_lightning.register_autograd(_differentiate_lightning, setup_context=_save_lightning)


def _flash_flops(q: Any, k: Any, causal: bool) -> int:
    """Return the FLOPs of both products; `causal` tokens see half of the others on average."""
    batch, heads, queries, width = q
    keys = k[2]
    pairs = queries * keys - (queries * (queries - 1) // 2 if causal else 0)
    return 4 * batch * heads * width * pairs


@register_flop_formula(torch.ops.amnesia_dry_run.flash)
def _(q: Any, k: Any, v: Any, causal: bool, *_: Any, **__: Any) -> int:
    return _flash_flops(q, k, causal)


@register_flop_formula(torch.ops.amnesia_dry_run.flash_backward)
def _(gradient: Any, q: Any, k: Any, v: Any, causal: bool, *_: Any, **__: Any) -> int:
    # Five products of the same size as the two of the forward pass: the logits again.
    return _flash_flops(q, k, causal) * 5 // 2


@register_flop_formula(torch.ops.amnesia_dry_run.lightning)
def _(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    batch, tokens, heads, key_dim = q
    # A state update and a read of the state, then logits and values within complete chunks.
    per_token = 4 * key_dim * v[3] + 2 * CHUNK_TOKENS * (key_dim + v[3])
    return batch * tokens * heads * per_token


@register_flop_formula(torch.ops.amnesia_dry_run.lightning_backward)
def _(gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    batch, tokens, heads, key_dim = q
    # The states again, their gradients, and one product with a state for each of dq, dk and dv.
    # Within chunks: the logits and their gradients, and one product for each of dq, dk and dv.
    per_token = 10 * key_dim * v[3] + 2 * CHUNK_TOKENS * (3 * key_dim + 2 * v[3])
    return batch * tokens * heads * per_token


def _lightning_states(q: Tensor, v: Tensor, states: int) -> int:
    return int(q.shape[0] * states * q.shape[2] * q.shape[3] * v.shape[3])


def _flash_backward_workspace(gradient: Tensor, q: Tensor, k: Tensor, *_: Any) -> int:
    """Return the bytes of dq in float32, of the row sums, and of dk and dv for every query head."""
    batch, heads, tokens, width = q.shape
    expanded = 2 * batch * heads * k.shape[2] * width * q.element_size()
    return 4 * batch * heads * tokens * (width + 1) + expanded * (heads != k.shape[1])


# The bytes that a kernel allocates and frees again, from its arguments.
_WORKSPACES: dict[Any, Callable[..., int]] = {
    torch.ops.amnesia_dry_run.flash_backward: _flash_backward_workspace,
    torch.ops.amnesia_dry_run.lightning: lambda q, k, v, states, *_: (
        q.element_size() * _lightning_states(q, v, states)
    ),
    # The states and their gradients, both in float32.
    torch.ops.amnesia_dry_run.lightning_backward: lambda _, q, k, v, states: (
        2 * 4 * _lightning_states(q, v, states)
    ),
}


def workspace_bytes(packet: Any, args: tuple[Any, ...]) -> int:
    """Return the bytes that an operation allocates besides its outputs; 0 if it is not modelled."""
    workspace = _WORKSPACES.get(packet)
    return 0 if workspace is None else workspace(*args)


def modelled_lightning_attention(  # noqa: PLR0913 - the signature of lightning_attention
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: PackedRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Model `lightning_attention` on a GPU with fla."""
    queries, keys, values = (x.to(torch.float32).contiguous() for x in (q, k, v))
    lengths = [q.shape[1]]
    if cu_seqlens is not None:
        lengths = [stop - start for start, stop in cu_seqlens.documents]
    states = sum(math.ceil(tokens / CHUNK_TOKENS) for tokens in lengths)
    documents = q.shape[0] * len(lengths)
    output, state = _lightning(queries, keys, values, states, documents)
    return output.to(q.dtype), state


_torch_attention = nn.functional.scaled_dot_product_attention


def modelled_softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor:
    """Model `scaled_dot_product_attention` on a GPU, which chooses flash attention without a mask.

    The only mask that flash attention knows is the causal one.
    """
    if attn_mask is not None:
        output: Tensor = _torch_attention(q, k, v, attn_mask, **options)
        return output
    output, _ = _flash(q, k, v, bool(options.get("is_causal")))
    return output


@contextmanager
def modelled_kernels() -> Iterator[None]:
    """Replace the attention of all models by models of the CUDA kernels during the block."""
    with (
        _replaced(mixers, "lightning_attention", modelled_lightning_attention),
        _replaced(nn.functional, "scaled_dot_product_attention", modelled_softmax_attention),
    ):
        yield


@contextmanager
def _replaced(module: ModuleType, name: str, replacement: object) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)
