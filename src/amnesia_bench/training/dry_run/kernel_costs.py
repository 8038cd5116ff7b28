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

import amnesia_bench.modeling  # noqa: F401 - registers the ops of attention
from amnesia_bench.costs.gpus import KernelRates
from amnesia_bench.modeling.packing import CHUNK
from amnesia_bench.training.dry_run.kernels import flops_of

_aten = torch.ops.aten
_own = torch.ops.amnesia_bench
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
# How many products of q and k, or of their size, packed attention has; backward computes the logits
# again.
_PACKED = {_own.packed_attention: 2, _own.packed_attention_backward: 5}
# How many tensors as large as q, and states per chunk, fla's kernels read and write together.
# Forward: states from k, v; outputs from q, k, v and the states. Backward: the states again; their
# gradients from q and do; dq and dk from q, k, v, do and both states; dv from q, k, do and the
# gradients of the states. Source: ops/common/chunk_{h,o}.py of fla 0.6.
_LIGHTNING = {_own.lightning: (6, 2), _own.lightning_backward: (14, 5)}


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
    operands = _by_name(function, args, kwargs)
    written = tuple(_mutated(function, operands))
    storages = {storage_of(x) for x in inputs}
    fresh = tuple(x for x in outputs if storage_of(x) not in storages)
    if packet in _ALLOCATIONS or not (written or fresh):
        return None
    name = packet.__name__
    if packet in _PACKED:
        return Kernel(
            KernelKind.SOFTMAX,
            name,
            _PACKED[packet] * _packed_product_flops(operands),
            _bytes(packet, inputs, written, fresh),
        )
    flops = flops_of(function, args, kwargs, output)
    if packet in _LIGHTNING:
        q, v = operands["q"], operands["v"]
        return Kernel(
            KernelKind.LIGHTNING, name, flops, _lightning_bytes(q, v, *_LIGHTNING[packet])
        )
    kind = KernelKind.ELEMENTWISE
    if flops:
        kind = KernelKind.SOFTMAX if "flash" in name else KernelKind.MATMUL
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


def _lightning_bytes(q: Tensor, v: Tensor, operands: int, states: int) -> int:
    """Return the bytes of tensors as large as q, and of states per chunk in the dtype of q."""
    batch, tokens, heads, key_dim = _sizes(q)
    chunk_states = batch * tokens // CHUNK * heads * key_dim * _sizes(v)[3]
    return operands * tensor_bytes(q) + states * chunk_states * q.element_size()


def _packed_product_flops(operands: Mapping[str, Any]) -> int:
    """Return the FLOPs of one product of causal attention, as if documents had equal lengths."""
    _, heads, tokens, width = _sizes(operands["q"])
    documents = _sizes(operands["cu_seqlens"])[0] - 1
    return 2 * heads * width * (tokens * (tokens // documents + 1) // 2)


def _by_name(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    names = (argument.name for argument in function._schema.arguments)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(tree) if isinstance(x, Tensor))


def _mutated(function: Any, operands: Mapping[str, Any]) -> Iterator[Tensor]:
    for argument in function._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(operands.get(argument.name))


def storage_of(tensor: Tensor) -> int:
    """Return a number that a tensor shares with its views, and with no other tensor."""
    return int(tensor.untyped_storage()._cdata)


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
