"""Measure what runs on tensors without data: bytes of live tensors, FLOPs, and collectives.

Memory is counted by storage: a storage is live from the operation that returns it until nothing
refers to it. FSDP resizes storages itself, which is counted too.
"""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amnesia_bench.training.dry_run.kernels import flops_of, replaced, workspace_bytes
from amnesia_bench.training.dry_run.phases import Phase, PhaseTracker

# PyTorch's CUDA allocator rounds every allocation up to a multiple of this.
_ALLOCATION_BYTES = 512

_COLLECTIVES: Mapping[str, str] = {
    "_allgather_base_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "all_gather_into_tensor_out": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "all_reduce_": "all-reduce",
    "broadcast_": "broadcast",
}


@dataclass(frozen=True)
class Traffic:
    """The collectives of one kind: their number, and the bytes of the complete tensors."""

    count: float
    bytes: float


class Meter(TorchDispatchMode):
    """Measures memory, FLOPs and collectives while it is active; `reset` starts a measurement.

    Attributes:
        live_bytes: the bytes of all live tensors now.
        peak_bytes: the largest value of `live_bytes` in each phase.
        flops: hardware FLOPs of forward and backward passes.
        recomputed_flops: those of them that repeat a forward pass.
        traffic: the collectives by kind.
    """

    def __init__(self, tracker: PhaseTracker) -> None:
        super().__init__()
        self._tracker = tracker
        self._sizes: dict[int, int] = {}  # by the address of the storage
        self._references: dict[int, weakref.ref[Any]] = {}
        self.live_bytes = 0
        self.reset()

    def reset(self) -> None:
        """Forget all peaks and counts, but not the live tensors."""
        self.peak_bytes: Counter[Phase] = Counter()
        self.flops = 0
        self.recomputed_flops = 0
        self._traffic: defaultdict[str, list[int]] = defaultdict(list)

    @property
    def traffic(self) -> dict[str, Traffic]:
        return {kind: Traffic(len(sizes), sum(sizes)) for kind, sizes in self._traffic.items()}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._note_peak(self.live_bytes)  # of a phase in which nothing is allocated
        output = function(*args, **(kwargs or {}))
        outputs = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
        for tensor in outputs:
            self._track(tensor)
        if workspace := workspace_bytes(function, args):
            self._note_peak(self.live_bytes + workspace)
        if self._tracker.phase is not Phase.OPTIMIZER:
            flops = flops_of(function, args, kwargs or {}, output)
            self.flops += flops
            self.recomputed_flops += flops * self._tracker.recomputing
        if function.namespace in ("c10d", "_c10d_functional"):
            self._note_collective(function.overloadpacket.__name__, (args, outputs))
        return output

    def __enter__(self) -> Meter:
        resize: Any = torch.UntypedStorage.resize_

        def measured_resize(storage: Any, num_bytes: int) -> None:
            resize(storage, num_bytes)
            if (key := storage._cdata) in self._sizes:
                change = _rounded(num_bytes) - self._sizes[key]
                self._sizes[key] += change
                self._add(change)

        self._patches = ExitStack()
        self._patches.enter_context(replaced(torch.UntypedStorage, "resize_", measured_resize))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._patches.close()

    def _track(self, tensor: Tensor) -> None:
        # An operation on DTensors is measured as a whole. To look inside would also measure tensors
        # of the complete shape, with which DTensor derives the placement of its result.
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        storage = local.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = _rounded(storage.nbytes())
            self._references[key] = weakref.ref(storage, lambda _: self._free(key))
            self._add(self._sizes[key])

    def _free(self, key: int) -> None:
        del self._references[key]
        self.live_bytes -= self._sizes.pop(key)

    def _add(self, num_bytes: int) -> None:
        self.live_bytes += num_bytes
        self._note_peak(self.live_bytes)

    def _note_peak(self, num_bytes: int) -> None:
        phase = self._tracker.phase
        self.peak_bytes[phase] = max(self.peak_bytes[phase], num_bytes)

    def _note_collective(self, name: str, tensors: Any) -> None:
        if kind := _COLLECTIVES.get(name):
            sizes = [x.numel() * x.element_size() for x in tree_leaves(tensors) if _is_tensor(x)]
            self._traffic[kind].append(max(sizes))


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // _ALLOCATION_BYTES) * _ALLOCATION_BYTES
