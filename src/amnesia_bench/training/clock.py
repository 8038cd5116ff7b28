"""Measure how much of a step's time is computation, on a CPU or a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch


class Moment(Protocol):
    """A point in the time of a device, such as a `torch.cuda.Event`."""

    def elapsed_time(self, end: Any, /) -> float:
        """Return the milliseconds from this moment to `end`."""


class _HostMoment:
    def __init__(self) -> None:
        self._seconds = time.perf_counter()

    def elapsed_time(self, end: _HostMoment, /) -> float:
        return 1000 * (end._seconds - self._seconds)


def _gpu_moment() -> Moment:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Clock:
    """Measures the seconds spent on computation and on everything else.

    Computation comprises the forward pass, the backward pass and the optimizer. On a GPU, calls
    return before their kernels have run, so the GPU itself records when a block begins and ends.

    Args:
        moment: returns the present moment of the device that computes.
    """

    def __init__(self, moment: Callable[[], Moment]) -> None:
        self._moment = moment
        self._blocks: list[tuple[Moment, Moment]] = []
        self._last = time.perf_counter()

    @classmethod
    def of(cls, device: torch.device) -> Clock:
        """Return a clock for computation on a device."""
        return cls(_gpu_moment if device.type == "cuda" else _HostMoment)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count the time in the block as computation."""
        start = self._moment()
        yield
        self._blocks.append((start, self._moment()))

    def read(self) -> tuple[float, float]:
        """Return the seconds (computation, everything else) since the last `read`.

        The caller must just have waited for the device, for example by reading a result. Only then
        have all blocks ended, and does the time of the host equal that of the device.
        """
        now = time.perf_counter()
        compute = sum(start.elapsed_time(end) for start, end in self._blocks) / 1000
        other = max(0.0, now - self._last - compute)
        self._blocks.clear()
        self._last = now
        return compute, other
