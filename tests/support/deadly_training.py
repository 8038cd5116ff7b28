"""Processes of a run that kill themselves, as kill -9 would, at a chosen or a random moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.training_runs import Started, TinyJob, as_process

# Where the process dies -> module, name of what is called there. "torn" dies half way through a
# line of the metrics, "save" with the tensors half written.
PLACES = {
    "step": ("amnesia_bench.training.loop", "learning_rate"),
    "save": ("torch.distributed.checkpoint.filesystem", "_write_item"),
    "hash": ("amnesia_bench.training.checkpoints", "sha256_of"),
    "complete": ("amnesia_bench.training.checkpoints", "write_json"),
    "renamed": ("amnesia_bench.training.checkpoints", "sync_folder"),
    "export": ("amnesia_bench.store.hashing", "file_entry"),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _deadly(module: Any, name: str, countdown: int) -> None:
    honest = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal countdown
        countdown -= 1
        if countdown < 0:
            die()
        return honest(*args, **kwargs)

    setattr(module, name, call)


def _tear(after: int) -> None:
    from amnesia_bench.tracking.metrics_file import MetricsFile

    honest: Callable[..., None] = MetricsFile.append

    def append(self: Any, line: Any) -> None:
        if line["step"] > after and "loss" in line:
            self._file.write(b'{"step": 5, "lo')
            self._file.flush()
            die()
        honest(self, line)

    MetricsFile.append = append  # type: ignore[method-assign]


def _keep_saves() -> None:
    import amnesia_bench.training.run as module

    module.remove_run = lambda _: []  # type: ignore[attr-defined]


def keeps_saves(job: TinyJob, rank: int, size: int, port: int, log: Path) -> None:
    """Be a process that does not tidy up, so that its last save can be looked at."""
    _keep_saves()
    as_process(job, rank, size, port, log)


class Deadly:
    """The target of a process that dies: at the `count`-th call of a place, or after seconds."""

    def __init__(self, place: str, count: int | float, rank: int = 0) -> None:
        self._place, self._count, self._rank = place, count, rank

    def __call__(self, job: TinyJob, rank: int, size: int, port: int, log: Path) -> None:
        from importlib import import_module

        _keep_saves()
        if rank == self._rank:
            if self._place == "clock":
                threading.Thread(target=self._die_later, daemon=True).start()
            elif self._place == "torn":
                _tear(int(self._count))
            else:
                module, name = PLACES[self._place]
                _deadly(import_module(module), name, int(self._count))
        as_process(job, rank, size, port, log)

    def _die_later(self) -> None:
        time.sleep(self._count)
        die()


def run_and_die(job: TinyJob, deadly: Any, size: int) -> bool:
    """Start a run that dies; return whether it did, with all its processes."""
    started = Started(job, size, deadly)
    deadline = time.monotonic() + 120
    while all(process.is_alive() for process in started.processes):
        if time.monotonic() > deadline:
            started.kill()
            raise AssertionError(f"neither died nor ended: {started.said}")
        time.sleep(0.01)
    # A failure of one is the end of all, as under torchrun; the first publishes alone, and last.
    if any(process.exitcode not in (None, 0) for process in started.processes):
        started.kill()
    codes = started.wait()
    assert codes == [0] * size or -signal.SIGKILL in codes, started.said
    return -signal.SIGKILL in codes
