"""What the CUDA kernels of attention allocate and compute, for tensors without data.

On a GPU, lightning attention and the gated delta rule run fla's chunked kernels, which are ops of
ours, and softmax attention runs flash attention, which is an op of PyTorch. On fake tensors, they
return tensors of the right shape, and save what the kernels save for the backward pass. This module
adds what the ops do not say: the memory that a kernel allocates and frees again, and its FLOPs.

Sources: `modeling.lightning_fla`; fla/ops/gated_delta_rule/chunk.py of fla 0.6.0;
aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp.

Shapes: B batch, T tokens, H query heads, G key/value heads, D head dim; for lightning attention
K key dim, V value dim, C chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from amnesia_bench.modeling.lightning_attention import fla_ops_on_every_device
from amnesia_bench.modeling.packing import CHUNK

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward
_LIGHTNING = torch.ops.amnesia_bench.lightning
_LIGHTNING_BACKWARD = torch.ops.amnesia_bench.lightning_backward
_DELTA = torch.ops.amnesia_bench.gated_delta
_DELTA_BACKWARD = torch.ops.amnesia_bench.gated_delta_backward


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


def _lightning_flops(q: Tensor, _: Tensor, v: Tensor, *__: Any) -> int:
    batch, tokens, heads, key_dim = q.shape
    # An update and a product with the state, then logits and values within complete chunks.
    per_token = 4 * key_dim * v.shape[3] + 2 * CHUNK * (key_dim + v.shape[3])
    return int(batch * tokens * heads * per_token)


def _lightning_backward_flops(
    _: Tensor, __: Tensor | None, q: Tensor, ___: Tensor, v: Tensor, *____: Any
) -> int:
    batch, tokens, heads, key_dim = q.shape
    # The states again, their gradients, and one product with a state for each of dq, dk and dv.
    # Within chunks: the logits and their gradients, and one product for each of dq, dk and dv.
    per_token = 10 * key_dim * v.shape[3] + 2 * CHUNK * (3 * key_dim + 2 * v.shape[3])
    return int(batch * tokens * heads * per_token)


def _chunk_states_bytes(q: Tensor, v: Tensor, chunk_index: Tensor | None) -> int:
    """Return the bytes of one state per chunk, in the dtype of the operands."""
    batch, tokens, heads, key_dim = q.shape
    chunks = -(-tokens // CHUNK) if chunk_index is None else chunk_index.shape[0]
    return int(batch * chunks * heads * key_dim * v.shape[3] * q.element_size())


def _lightning_workspace(q: Tensor, _: Tensor, v: Tensor, *options: Any) -> int:
    return _chunk_states_bytes(q, v, options[4])


def _lightning_backward_workspace(
    _: Tensor, __: Tensor | None, q: Tensor, ___: Tensor, v: Tensor, *options: Any
) -> int:
    return 2 * _chunk_states_bytes(q, v, options[4])  # the states and their gradients


def _delta_flops(q: Tensor, _: Tensor, v: Tensor, *__: Any) -> int:
    # An update of the state, and products with it for the prediction and the output. As in
    # `costs.mixer_shapes`, products within chunks are not counted.
    return int(6 * q.numel() * v.shape[3])


def _delta_backward_flops(_: Tensor, __: Tensor | None, *operands: Any) -> int:
    return 2 * _delta_flops(*operands)


def _delta_workspace(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> int:
    """Return the bytes of the states of chunks, and of w, u and the corrected values per token."""
    per_token = (k.numel() + 2 * v.numel()) * q.element_size()
    return int(_chunk_states_bytes(q, v, options[-1]) + per_token)


def _delta_backward_workspace(_: Tensor, __: Tensor | None, *operands: Any) -> int:
    q, k, v = operands[:3]
    gradients = (k.numel() + 2 * v.numel()) * q.element_size()
    states = _chunk_states_bytes(q, v, operands[-1])
    return int(_delta_workspace(q, k, v, operands[-1]) + states + gradients)


# The FLOPs of kernels that PyTorch's table lacks, or counts without regard to causality.
_FLOPS: dict[Any, Callable[..., int]] = {
    _FLASH: _flash_forward_flops,
    _FLASH_BACKWARD: _flash_backward_flops,
    _LIGHTNING: _lightning_flops,
    _LIGHTNING_BACKWARD: _lightning_backward_flops,
    _DELTA: _delta_flops,
    _DELTA_BACKWARD: _delta_backward_flops,
}
# The bytes that a kernel allocates and frees again.
_WORKSPACES: dict[Any, Callable[..., int]] = {
    _FLASH_BACKWARD: _flash_backward_workspace,
    _LIGHTNING: _lightning_workspace,
    _LIGHTNING_BACKWARD: _lightning_backward_workspace,
    _DELTA: _delta_workspace,
    _DELTA_BACKWARD: _delta_backward_workspace,
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
    """Return the bytes that an operation allocates besides its outputs, as far as known here."""
    workspace = _WORKSPACES.get(operation.overloadpacket)
    return 0 if workspace is None else workspace(*args)


_torch_attention = nn.functional.scaled_dot_product_attention


def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Any:
    """Attend as `scaled_dot_product_attention` would on a GPU: by flash attention, if unmasked."""
    if attn_mask is not None:
        return _torch_attention(q, k, v, attn_mask, **options)
    return _FLASH(q, k, v, 0.0, bool(options.get("is_causal")))[0]


@contextmanager
def kernels_of_a_gpu() -> Iterator[None]:
    """Make models call the ops that they would call on a GPU, during the block."""
    with (
        fla_ops_on_every_device(),
        replaced(nn.functional, "scaled_dot_product_attention", _flash_attention),
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
