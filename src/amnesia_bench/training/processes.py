"""The processes of a run: who we are, what all of us agree on, and who asked us to stop.

One process or many, CPU or GPU: the same calls. A process alone makes a group of its own.
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
        rank: 0 .. size - 1.
        device: where this one computes.
        mesh: all of them, in one dimension.
        background: a group for what runs beside training: collectives of two threads on one group
            would mix.
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
        """Whether this is the one that writes."""
        return self.rank == 0

    def sums(self, values: Sequence[int]) -> list[int]:
        """Return the sums of integers over all processes."""
        total = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(total)
        return [int(value) for value in total.tolist()]

    def on_first(self, call: Callable[[], Result]) -> Result:
        """Run something in the first process; all get its result, or raise what it raised."""
        outcome: list[object] = [None, None]
        if self.first:
            try:
                outcome[0] = call()
            except AmnesiaError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if isinstance(outcome[1], AmnesiaError):
            raise outcome[1]
        return outcome[0]  # type: ignore[return-value]  # it is what `call` returned

    def agree(self, failure: AmnesiaError | None) -> None:
        """Raise everywhere what went wrong in the lowest rank where something did."""
        failures: list[AmnesiaError | None] = [None] * self.size
        dist.all_gather_object(failures, failure)
        for found in failures:
            if found is not None:
                raise found


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the group that torchrun describes in the environment, or make one of one."""
    # CPU tensors have a backend of their own: counts and saves must not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        distributed: Any = dist  # its stores are not declared
        store = distributed.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield Processes()
    finally:
        dist.destroy_process_group()


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and SIGUSR1 into a flag that can be asked for; give back the old handlers."""
    asked = threading.Event()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
