"""Count the kernels of a training step on tensors without data, and the FLOPs and bytes of each.

A kernel takes at least the longer of two times: its FLOPs at the rate of its kind, and the bytes
that it must read and write at the bandwidth of the GPU's memory. Every operation of eager PyTorch
on tensors is one kernel, except views and allocations, which are none. Operands are read completely
once, and caches keep nothing between two kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from amnesia_bench.costs.gpus import KernelRates
from amnesia_bench.training.dry_run.kernels import CHUNK_TOKENS

_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty,
    _aten.empty_like,
    _aten.empty_strided,
    _aten.new_empty,
    _aten.new_empty_strided,
}
# The kernel does not read its first argument: it overwrites it, or takes only its dtype and shape.
_OVERWRITES = {
    _aten.copy_,
    _aten.fill_,
    _aten.zero_,
    _aten.new_full,
    _aten.new_ones,
    _aten.new_zeros,
    _aten.full_like,
    _aten.ones_like,
    _aten.zeros_like,
}
# The kernel reads the rows or elements that an index selects, so as many as it writes.
_SELECTS = {_aten.embedding, _aten.index_select, _aten.gather, _aten.index}
# The kernel reads and writes the elements of its first argument that an index selects.
_SCATTERS = {_aten.scatter_add_, _aten.scatter_, _aten.index_add_, _aten.index_put_}


class KernelKind(StrEnum):
    """What limits a kernel, and so its rate."""

    MATMUL = "matmul"
    ELEMENTWISE = "elementwise"  # also norms, casts, copies and reductions
    LIGHTNING = "lightning"
    SOFTMAX = "softmax"  # attention


@dataclass(frozen=True)
class Kernel:
    """A kernel; `num_bytes` counts what it reads and writes in the GPU's memory."""

    kind: KernelKind
    name: str
    flops: int
    num_bytes: int

    def seconds(self, rates: KernelRates) -> float:
        """Return the least time that the kernel takes on a GPU with these rates."""
        flops_per_second = {
            KernelKind.MATMUL: rates.matmul_flops_per_second,
            KernelKind.LIGHTNING: rates.lightning_flops_per_second,
            KernelKind.SOFTMAX: rates.softmax_flops_per_second,
        }
        computing = 0.0
        if self.kind in flops_per_second:
            computing = self.flops / flops_per_second[self.kind]
        return max(computing, self.num_bytes / rates.bytes_per_second)


def kernel_of(function: Any, args: Any, kwargs: Any, output: Any) -> Kernel | None:
    """Return the kernel that an operation launches on a GPU, or None if it launches none.

    Args:
        function: the overload of the operation, for example `torch.ops.aten.mm.default`.
        args: its positional arguments.
        kwargs: its keyword arguments.
        output: what it returned.
    """
    packet = function._overloadpacket
    inputs, outputs = tuple(_tensors((args, kwargs))), tuple(_tensors(output))
    written = tuple(_mutated(function, args, kwargs))
    storages = {storage_of(x) for x in inputs}
    fresh = tuple(x for x in outputs if storage_of(x) not in storages)
    if packet in _ALLOCATIONS or not (written or fresh):
        return None
    name = packet.__name__
    operands = _by_name(function, args, kwargs)
    if name in ("lightning", "lightning_backward"):
        return _lightning(name, operands)
    kind, flops = KernelKind.ELEMENTWISE, 0
    if name in ("packed_attention", "packed_attention_backward"):
        kind, flops = KernelKind.SOFTMAX, _packed_flops(name, operands)
    elif packet in flop_registry:
        kind = KernelKind.SOFTMAX if "flash" in name else KernelKind.MATMUL
        flops = int(flop_registry[packet](*args, **kwargs, out_val=output))
    return Kernel(kind, name, flops, _bytes(packet, inputs, written, fresh))


def _bytes(
    packet: Any, inputs: tuple[Tensor, ...], written: tuple[Tensor, ...], fresh: tuple[Tensor, ...]
) -> int:
    if packet in _SELECTS:
        return 2 * sum(map(tensor_bytes, fresh)) + sum(map(tensor_bytes, inputs[1:]))
    if packet in _SCATTERS:
        index, *values = inputs[1:]
        size = prod(_sizes(values[-1] if values else index))
        return 2 * size * inputs[0].element_size() + sum(map(tensor_bytes, inputs[1:]))
    reads = inputs[1:] if packet in _OVERWRITES else inputs
    return sum(map(tensor_bytes, (*_distinct(reads), *_distinct(written), *fresh)))


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of the distinct elements of a tensor; expanded ones count once."""
    sizes = zip(_sizes(tensor), tensor.stride(), strict=True)
    return prod(size for size, stride in sizes if stride or not size) * tensor.element_size()


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape; a size that may vary between batches is the one it was compiled with."""
    return tuple(x if isinstance(x, int) else x.node.hint for x in tensor.shape)


def _lightning(name: str, operands: Mapping[str, Any]) -> Kernel:
    """Return fla's chunked kernels as one, with a state per chunk of 64 tokens.

    Forward: states from k, v; outputs from q, k, v and the states. Backward: the states again;
    their gradients from q and do; dq and dk from q, k, v, do and both states; dv from q, k, do and
    the gradients of the states. States between kernels have the dtype of the operands. Source:
    ops/common/chunk_{h,o}.py of fla 0.6.
    """
    q, v = operands["q"], operands["v"]
    batch, tokens, heads, key_dim = _sizes(q)
    value_dim = _sizes(v)[3]
    chunks = batch * tokens // CHUNK_TOKENS
    x, h = tensor_bytes(q), chunks * heads * key_dim * value_dim * q.element_size()
    num_bytes = (2 * x + h) + (4 * x + h)
    # A state update and a read of the state; then logits and values within complete chunks.
    per_token = 4 * key_dim * value_dim + 2 * CHUNK_TOKENS * (key_dim + value_dim)
    if name == "lightning_backward":
        num_bytes = (2 * x + h) + (2 * x + h) + (6 * x + 2 * h) + (4 * x + h)
        # States, their gradients, and a product with a state for each of dq, dk and dv. Within
        # chunks: the logits and their gradients, and a product for each of dq, dk and dv.
        per_token = 10 * key_dim * value_dim + 2 * CHUNK_TOKENS * (3 * key_dim + 2 * value_dim)
    return Kernel(KernelKind.LIGHTNING, name, batch * tokens * heads * per_token, num_bytes)


def _packed_flops(name: str, operands: Mapping[str, Any]) -> int:
    """Return the FLOPs of causal attention in packed documents, as if they had equal lengths."""
    _, heads, tokens, width = _sizes(operands["q"])
    documents = _sizes(operands["cu_seqlens"])[0] - 1
    pairs = tokens * (tokens // documents + 1) // 2
    # Backward: five products of the size of the two of the forward pass.
    return (10 if name.endswith("backward") else 4) * heads * width * pairs


def _by_name(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    names = (argument.name for argument in function._schema.arguments)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(tree) if isinstance(x, Tensor))


def _mutated(function: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    values = _by_name(function, args, kwargs)
    for argument in function._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(values.get(argument.name))


def storage_of(tensor: Tensor) -> int:
    """Return a number that a tensor shares with its views, and with no other tensor."""
    return tensor.untyped_storage()._cdata


def _distinct(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    return {(storage_of(x), x.storage_offset(), _sizes(x)): x for x in tensors}.values()


class KernelCounter(TorchDispatchMode):
    """Adds up the kernels of all operations while it is active.

    Attributes:
        kernels: how often each kernel was launched, by phase.
    """

    def __init__(self, phase: Callable[[], str]) -> None:
        super().__init__()
        self._phase = phase
        self.kernels: Counter[tuple[str, Kernel]] = Counter()

    def add(self, kernels: Iterable[Kernel]) -> None:
        """Count kernels that were not seen as operations, in the current phase."""
        phase = self._phase()
        self.kernels.update((phase, kernel) for kernel in kernels)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor calls the operation on its shards, which is counted
        output = function(*args, **(kwargs or {}))
        if function.namespace not in ("c10d", "_c10d_functional", "fsdp", "prim"):
            kernel = kernel_of(function, args, kwargs or {}, output)
            if kernel is not None:
                self.add((kernel,))
        return output
