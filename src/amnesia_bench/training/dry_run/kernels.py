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
from torch.utils.flop_counter import flop_registry, register_flop_formula

from amnesia_bench.modeling import mixers
from amnesia_bench.modeling.packing import PackedRows

aten = torch.ops.aten

CHUNK_TOKENS = 64  # of fla's chunked kernels

_NO_DATA = "this operation models a kernel and computes nothing"


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


@register_flop_formula(torch.ops.amnesia_dry_run.lightning)
def _(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    batch, tokens, heads, key_dim = q
    # A state update and a read of the state, then logits and values within complete chunks.
    per_token = 4 * key_dim * v[3] + 2 * CHUNK_TOKENS * (key_dim + v[3])
    return int(batch * tokens * heads * per_token)


@register_flop_formula(torch.ops.amnesia_dry_run.lightning_backward)
def _(gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    batch, tokens, heads, key_dim = q
    # The states again, their gradients, and one product with a state for each of dq, dk and dv.
    # Within chunks: the logits and their gradients, and one product for each of dq, dk and dv.
    per_token = 10 * key_dim * v[3] + 2 * CHUNK_TOKENS * (3 * key_dim + 2 * v[3])
    return int(batch * tokens * heads * per_token)


def _flash_flops(q: Tensor, k: Tensor, causal: bool) -> int:
    """Return the FLOPs of both products; with `causal`, each token sees those before it."""
    batch, heads, queries, width = q.shape
    pairs = queries * k.shape[2] - (queries * (queries - 1) // 2 if causal else 0)
    return int(4 * batch * heads * width * pairs)


def _flash_forward_flops(q: Tensor, k: Tensor, _: Tensor, *options: Any) -> int:
    return _flash_flops(q, k, causal=options[1])


def _flash_backward_flops(_: Tensor, q: Tensor, k: Tensor, *options: Any) -> int:
    # Five products of the size of the two of the forward pass, since the logits are computed again.
    return _flash_flops(q, k, causal=options[8]) * 5 // 2


def _flash_backward_workspace(_: Tensor, q: Tensor, k: Tensor, *__: Any) -> int:
    """Return the bytes of dq in float32, of the row sums, and of dk and dv for every query head."""
    batch, heads, tokens, width = q.shape
    expanded = 2 * batch * heads * k.shape[2] * width * q.element_size()
    return int(4 * batch * heads * tokens * (width + 1) + expanded * (heads != k.shape[1]))


def _lightning_states(q: Tensor, v: Tensor, states: int) -> int:
    return int(q.shape[0] * states * q.shape[2] * q.shape[3] * v.shape[3])


# The FLOPs of kernels that PyTorch's table counts otherwise: it ignores causality.
_FLOPS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention: _flash_forward_flops,
    aten._scaled_dot_product_flash_attention_backward: _flash_backward_flops,
}
# The bytes that a kernel allocates and frees again, from its arguments.
_WORKSPACES: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_backward: _flash_backward_workspace,
    torch.ops.amnesia_dry_run.lightning: lambda q, k, v, states, *_: (
        q.element_size() * _lightning_states(q, v, states)
    ),
    # The states and their gradients, both in float32.
    torch.ops.amnesia_dry_run.lightning_backward: lambda _, q, k, v, states: (
        2 * 4 * _lightning_states(q, v, states)
    ),
}


def flops_of(operation: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> int:
    """Return the FLOPs of an operation (an `OpOverload`); 0 if it has no matrix product."""
    packet = operation.overloadpacket
    if packet in _FLOPS:
        return _FLOPS[packet](*args)
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=output))
    return 0


def workspace_bytes(operation: Any, args: tuple[Any, ...]) -> int:
    """Return the bytes that an operation allocates besides its outputs; 0 if it is not modelled."""
    workspace = _WORKSPACES.get(operation.overloadpacket)
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
) -> Any:
    """Model `scaled_dot_product_attention` on a GPU, which chooses flash attention without a mask.

    The only mask that flash attention knows is the causal one.
    """
    if attn_mask is not None:
        return _torch_attention(q, k, v, attn_mask, **options)
    causal = bool(options.get("is_causal"))
    return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[0]


@contextmanager
def modelled_kernels() -> Iterator[None]:
    """Replace the attention of all models by models of the CUDA kernels during the block."""
    with (
        replaced(mixers, "lightning_attention", modelled_lightning_attention),
        replaced(nn.functional, "scaled_dot_product_attention", modelled_softmax_attention),
    ):
        yield


@contextmanager
def replaced(owner: ModuleType | type, name: str, replacement: object) -> Iterator[None]:
    """Replace an attribute of a module or a class during the block."""
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)
