"""The processes of a run: ranks, collectives, errors and stop signals.

The interface is the same for one process or many, on CPU or GPU: a single process forms a group of
size one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from amnesia_bench.errors import AmnesiaError

Result = TypeVar("Result")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Processes:
    """The group of processes that train together.

    Attributes:
        rank: the number of this process, from 0 to size - 1.
        size: the number of processes.
        device: the device of this process.
        mesh: a one-dimensional device mesh of all processes.
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
        self.mesh: DeviceMesh = init_device_mesh(self.device.type, (self.size,))
        self.background = dist.new_group(backend="gloo")

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes all files."""
        return self.rank == 0

    def sums(self, values: Sequence[int]) -> list[int]:
        """Return each integer summed over all processes (an all-reduce)."""
        total = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(total)
        return [int(value) for value in total.tolist()]

    def on_first(self, call: Callable[[], Result]) -> Result:
        """Run `call` in the first process; every process returns its result or raises its error."""
        outcome: list[object] = [None, None]
        if self.first:
            try:
                outcome[0] = call()
            except AmnesiaError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
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
    requested = threading.Event()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: requested.set())
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
