"""The processes of a run: ranks, collectives, errors and stop signals.

The interface is the same for one process or many, on CPU or GPU: a single process forms a group of
size one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from amnesia_bench.errors import AmnesiaError, UserError

Result = TypeVar("Result")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

# How long the other processes wait while the first one loads, hashes or writes files. PyTorch's
# limits of 10 minutes (NCCL) and 30 minutes (gloo) may be too short for a slow file system. If the
# first process dies meanwhile, its connections close, and the others fail at once.
_FILE_TIMEOUT = timedelta(hours=24)


class Processes:
    """The group of processes that train together.

    Attributes:
        rank: the number of this process, from 0 to size - 1.
        size: the number of processes.
        device: the device of this process.
        mesh: the device mesh of all processes; see `device_mesh`.
        background: a second process group, for work in a thread that runs concurrently with
            training. Collectives that two threads start in one group could be matched wrongly.
    """

    def __init__(self) -> None:
        cuda = torch.cuda.is_available()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = torch.device("cpu")
        if cuda:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        self.mesh = device_mesh(self.device.type, self.size, _processes_per_node(self.size))
        self.background = dist.new_group(backend="gloo")
        self._files = dist.new_group(backend="gloo", timeout=_FILE_TIMEOUT)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes all files."""
        return self.rank == 0

    @property
    def on_gpus(self) -> bool:
        """Whether the processes compute on GPUs."""
        return self.device.type == "cuda"

    @property
    def copies(self) -> int:
        """The number of copies of the model that the mesh holds: one per node."""
        return self.mesh.size(0) if self.mesh.ndim == 2 else 1

    def sums(self, values: Sequence[int]) -> list[int]:
        """Return each integer summed over all processes (an all-reduce)."""
        total = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(total)
        return [int(value) for value in total.tolist()]

    def on_first(self, call: Callable[[], Result]) -> Result:
        """Run `call` in the first process; every process returns its result or raises its error.

        The call may take hours, for example to write a checkpoint.
        """
        outcome: list[object] = [None, None]
        if self.first:
            try:
                outcome[0] = call()
            except AmnesiaError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, group=self._files)
        if isinstance(outcome[1], AmnesiaError):
            raise outcome[1]
        return outcome[0]  # type: ignore[return-value]  # the result of `call`

    def agree(self, failure: AmnesiaError | None) -> None:
        """If any process passes a failure, raise the failure of the lowest such rank in all."""
        failures: list[AmnesiaError | None] = [None] * self.size
        dist.all_gather_object(failures, failure)
        for first_failure in failures:
            if first_failure is not None:
                raise first_failure


def device_mesh(device_type: str, size: int, per_node: int) -> DeviceMesh:
    """Return the mesh over which models are sharded.

    On one node the mesh is one-dimensional, [size], and every process has one shard of the model.
    On several nodes it is [nodes, per_node]: every node has a complete copy of the model, sharded
    over its own processes (HSDP). So weights are gathered only within a node, and only gradients
    are summed over the slower network between nodes. Nodes with one process each are treated as one
    node, since a copy of the model in each process would need all of its memory.
    """
    if per_node in (1, size):
        return init_device_mesh(device_type, (size,))
    return init_device_mesh(
        device_type, (size // per_node, per_node), mesh_dim_names=("replicate", "shard")
    )


def _processes_per_node(size: int) -> int:
    """Return the number of processes on each node, which torchrun passes to its workers.

    Raises:
        UserError: it differs between nodes, which could not have equal shards.
    """
    here = os.environ.get("LOCAL_WORLD_SIZE")
    if here is None:
        return size
    numbers = [0] * size
    dist.all_gather_object(numbers, int(here))
    if min(numbers) != max(numbers):
        raise UserError(
            f"the nodes have between {min(numbers)} and {max(numbers)} processes each",
            hint="Start the same number of processes on every node (--nproc-per-node).",
        )
    return numbers[0]


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the process group of torchrun's environment variables, or else form a group of one."""
    # CPU tensors use the gloo backend, since collectives on counts must not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        distributed: Any = dist  # torch's type hints omit the stores
        store = distributed.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield Processes()
    finally:
        dist.destroy_process_group()


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM or SIGUSR1 has arrived.

    The previous signal handlers are restored after the block.
    """
    # A handler may interrupt itself: schedulers send several signals at once. It takes no lock
    # therefore; `threading.Event.set` takes one, and the second handler would wait for the first.
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
