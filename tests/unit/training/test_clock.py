"""The clock asks the device that computes, not the host, how long a computation took."""

from __future__ import annotations

import pytest
import torch

from amnesia_bench.training import clock as module
from amnesia_bench.training.clock import Clock


class Host:
    """The time of the host, in seconds."""

    now = 0.0


class QueuedMoment:
    """An event in the queue of a GPU, which runs behind the host."""

    queue_ms = 0.0

    def __init__(self) -> None:
        self.at = QueuedMoment.queue_ms

    def elapsed_time(self, end: QueuedMoment) -> float:
        return end.at - self.at


def test_computation_is_what_the_device_did_and_the_rest_is_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.time, "perf_counter", lambda: Host.now)
    Host.now, QueuedMoment.queue_ms = 0.0, 0.0
    clock = Clock(QueuedMoment)
    Host.now += 1.0  # the host reads a batch
    for kernels_ms in (2000.0, 3000.0):
        with clock.computing():
            Host.now += 0.001  # the host only queues kernels
            QueuedMoment.queue_ms += kernels_ms
    Host.now = 6.5  # the host has waited for the device
    assert clock.read() == pytest.approx((5.0, 1.5))
    Host.now += 0.25
    assert clock.read() == pytest.approx((0.0, 0.25))


def test_on_a_cpu_a_block_is_computation_and_all_else_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.time, "perf_counter", lambda: Host.now)
    Host.now = 3.0
    clock = Clock.of(torch.device("cpu"))
    Host.now += 1.0
    with clock.computing():
        Host.now += 4.0
    Host.now += 2.0
    assert clock.read() == pytest.approx((4.0, 3.0))
