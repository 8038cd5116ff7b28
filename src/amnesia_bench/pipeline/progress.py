"""How a run shows that it goes on: a line per finished stage, on a terminal a bar below them."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from amnesia_bench.costs.work import Training
from amnesia_bench.errors import AmnesiaError
from amnesia_bench.pipeline.bookkeeping import StageState, state_of
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.lease import current_holder
from amnesia_bench.store.processes import Holder, is_here, parent_of

_LOOK_SECONDS = 0.5
_ERASE = "\r\x1b[K"


class Watcher:
    """Looks at the stages of a run as they are on disk, whoever works on them.

    Args:
        store: the folder of all artifacts.
        stages: those that were not done when the run began, and those that may turn out stale.
        cached: the ids of the latter.
        of: how many there are with all others.
    """

    def __init__(
        self, store: Path, stages: Sequence[Stage], cached: Collection[str], of: int
    ) -> None:
        self._store = store
        self._stages = tuple(stages)
        self._left = {stage.id: stage for stage in stages if stage.id not in cached}
        self._waits: set[str] = set()
        self._of = of
        self._running: dict[str, float] = {}
        self._weights = {stage.id: _weight(stage) for stage in stages}
        self._began = time.monotonic()
        # Snakemake redirects sys.stderr while it runs.
        self._out: TextIO = sys.stderr
        self._terminal = self._out.isatty()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="amnesia-watcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(AmnesiaError):
            self._look()
        if self._terminal:
            self._write(_ERASE)

    def _look(self) -> None:
        """Say which stages have ended since the last look."""
        now = time.monotonic()
        for stage in self._stages:
            state = state_of(self._store, stage.kind, stage.id)
            if state is StageState.CACHED:
                if stage.id in self._left:
                    self._tell_done(stage, now)
                continue
            self._left[stage.id] = stage
            if state is StageState.RUNNING:
                self._running.setdefault(stage.id, now)
                self._tell_if_elsewhere(stage)
            else:
                self._running.pop(stage.id, None)

    def _tell_done(self, stage: Stage, now: float) -> None:
        del self._left[stage.id]
        seconds = now - self._running.pop(stage.id, now)
        count = self._of - len(self._left)
        self._say(f"[{count}/{self._of}] {stage.id}  {seconds:.0f} s")

    def _tell_if_elsewhere(self, stage: Stage) -> None:
        """Say once of each stage that a process works on it which this run did not start."""
        holder = current_holder(stage_path(self._store, stage.id))
        if holder is None or stage.id in self._waits or _is_below(os.getpid(), holder):
            return
        self._waits.add(stage.id)
        who = f"process {holder.pid} on {holder.host} since {holder.since}"
        self._say(f"waiting for {stage.id}: {who}")

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            with suppress(AmnesiaError):  # the stage itself will say what cannot be read
                self._look()
            if self._terminal:
                line = f"  {self._left_over()}{', '.join(self._running)}"
                # A line that wraps cannot be erased.
                self._write(_ERASE + line[: shutil.get_terminal_size().columns - 1])

    def _left_over(self) -> str:
        """Return how much time is left, by the work of what was done and what was not."""
        whole = sum(self._weights.values())
        left = sum(self._weights[id] for id in self._left)
        elapsed = time.monotonic() - self._began
        if whole == left:
            return ""
        minutes, seconds = divmod(round(elapsed * left / (whole - left)), 60)
        return f"about {minutes}:{seconds:02} left; "

    def _say(self, line: str) -> None:
        self._write(f"{_ERASE if self._terminal else ''}{line}\n")

    def _write(self, text: str) -> None:
        with suppress(OSError):
            self._out.write(text)
            self._out.flush()


def _is_below(driver: int, holder: Holder) -> bool:
    """Return whether a process is one that a driver on this machine started, however indirectly."""
    if not is_here(holder):
        return False
    pid: int | None = holder.pid
    while pid is not None and pid not in (0, driver):
        pid = parent_of(pid)
    return pid != 0  # None: it has just ended, and there is nothing to wait for


def _weight(stage: Stage) -> float:
    """Return how long a stage takes compared with others, roughly."""
    if isinstance(stage.work, Training):
        train = stage.work.run.train
        return 2.0 + train.steps * train.global_batch * train.sequence_tokens / 1e4
    return {"recall": 15.0, "answers": 10.0}.get(stage.kind, 2.0)
