"""Show the progress of a run on stderr.

A line is printed for each finished stage; on a terminal, a progress bar is shown below the lines.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from amnesia_bench.costs.work import Answering, Training
from amnesia_bench.errors import AmnesiaError
from amnesia_bench.pipeline.bookkeeping import StageState, state_of
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.lease import current_holder
from amnesia_bench.store.processes import Holder, is_here, parent_of

_POLL_SECONDS = 0.5
_BAR_COLUMNS = 20


class Watcher:
    """Polls the states of a run's stages on disk, and prints progress.

    The stages may be run by this run or by other processes.

    Args:
        store: the folder of all artifacts.
        stages: the stages that were not done when the run began, and finished stages that may
            become stale.
        cached: ids of finished stages; those of them in `stages` may become stale.
        of: total number of stages in the run.
    """

    def __init__(
        self, store: Path, stages: Sequence[Stage], cached: Collection[str], of: int
    ) -> None:
        self._store = store
        self._stages = tuple(stages)
        self._pending = {stage.id: stage for stage in stages if stage.id not in cached}
        self._elsewhere: set[str] = set()
        self._of = of
        self._running: dict[str, float] = {}
        self._weights = {stage.id: _weight(stage) for stage in stages}
        self._began = time.monotonic()
        self._bar = _new_bar(of) if sys.stderr.isatty() else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="amnesia-watcher", daemon=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
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
            self._poll()
        if self._bar is not None:
            with suppress(OSError):
                self._bar.stop()

    def _poll(self) -> None:
        """Print a line for each stage that has finished since the last poll."""
        now = time.monotonic()
        for stage in self._stages:
            state = state_of(self._store, stage.kind, stage.id)
            if state is StageState.CACHED:
                if stage.id in self._pending:
                    self._print_done(stage, now)
                continue
            self._pending[stage.id] = stage
            if state is StageState.RUNNING:
                self._running.setdefault(stage.id, now)
                self._print_if_elsewhere(stage)
            else:
                self._running.pop(stage.id, None)

    def _print_done(self, stage: Stage, now: float) -> None:
        del self._pending[stage.id]
        seconds = now - self._running.pop(stage.id, now)
        count = self._of - len(self._pending)
        self._say(f"[{count}/{self._of}] {stage.id}  {seconds:.0f} s")

    def _print_if_elsewhere(self, stage: Stage) -> None:
        """Print a line, once per stage, if a process of another run is running the stage."""
        holder = current_holder(stage_path(self._store, stage.id))
        if holder is None or stage.id in self._elsewhere or _is_below(os.getpid(), holder):
            return
        self._elsewhere.add(stage.id)
        process = f"process {holder.pid} on {holder.host} since {holder.since}"
        self._say(f"waiting for {stage.id}: {process}")

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            with suppress(AmnesiaError):  # unreadable files are reported by the stage itself
                self._poll()
            self._draw()

    def _draw(self) -> None:
        if self._bar is not None:
            (task,) = self._bar.task_ids
            text = f"{self._time_left()}{', '.join(self._running)}"
            done = self._of - len(self._pending)
            with suppress(OSError):
                self._bar.update(task, completed=done, description=text, refresh=True)

    def _time_left(self) -> str:
        """Return the estimated remaining time as text; empty if no stage has finished yet.

        The estimate assumes that a stage's duration is proportional to its weight.
        """
        total = sum(self._weights.values())
        pending = sum(self._weights[id] for id in self._pending)
        elapsed = time.monotonic() - self._began
        if total == pending:
            return ""
        minutes, seconds = divmod(round(elapsed * pending / (total - pending)), 60)
        return f"about {minutes}:{seconds:02} left; "

    def _say(self, line: str) -> None:
        with suppress(OSError):  # stderr is closed
            if self._bar is None:
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
            else:
                self._bar.console.out(line, highlight=False)


def _new_bar(of: int) -> Progress:
    bar = Progress(
        BarColumn(bar_width=_BAR_COLUMNS),
        MofNCompleteColumn(),
        # On a narrow terminal only the description is truncated, not the bar or the counts.
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        console=Console(file=sys.stderr),
        auto_refresh=False,
        expand=True,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.add_task("", total=of)
    return bar


def _is_below(driver: int, holder: Holder) -> bool:
    """Return whether the process that holds a lease is a descendant of a driver on this machine."""
    if not is_here(holder):
        return False
    pid: int | None = holder.pid
    while pid is not None and pid not in (0, driver):
        pid = parent_of(pid)
    return pid != 0  # None means that the process has just ended: there is nothing to wait for


def _weight(stage: Stage) -> float:
    """Return the approximate duration of a stage in arbitrary units, relative to other stages."""
    if isinstance(stage.work, Training):
        train = stage.work.run.train
        return 2.0 + train.steps * train.global_batch * train.sequence_tokens / 1e4
    if isinstance(stage.work, Answering):
        return {"recall": 15.0, "answers": 10.0}.get(stage.kind, 2.0)
    return 2.0
