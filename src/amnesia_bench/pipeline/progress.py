"""How a run shows that it goes on: a line per finished stage, on a terminal a bar below them."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from amnesia_bench.pipeline.bookkeeping import StageState, state_of
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.pipeline.work import Training

_LOOK_SECONDS = 0.5
_ERASE = "\r\x1b[K"


class Watcher:
    """Looks at the stages of a run as they are on disk, whoever works on them.

    Args:
        store: the folder of all artifacts.
        stages: those that were not done when the run began.
        of: how many there are with those that were.
    """

    def __init__(self, store: Path, stages: Sequence[Stage], of: int) -> None:
        self._store = store
        self._left = {stage.id: stage for stage in stages}
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
        self._look()
        if self._terminal:
            self._write(_ERASE)

    def _look(self) -> None:
        """Say which stages have ended since the last look."""
        now = time.monotonic()
        for stage in list(self._left.values()):
            state = state_of(self._store, stage.kind, stage.id)
            if state is StageState.RUNNING:
                self._running.setdefault(stage.id, now)
            elif state is StageState.CACHED:
                del self._left[stage.id]
                seconds = now - self._running.pop(stage.id, now)
                count = self._of - len(self._left)
                line = f"[{count}/{self._of}] {stage.kind} {stage.id}  {seconds:.0f} s\n"
                self._write(f"{_ERASE if self._terminal else ''}{line}")
            else:
                self._running.pop(stage.id, None)

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
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

    def _write(self, text: str) -> None:
        with suppress(OSError):
            self._out.write(text)
            self._out.flush()


def _weight(stage: Stage) -> float:
    """Return how long a stage takes compared with others, roughly."""
    if isinstance(stage.work, Training):
        train = stage.work.run.train
        return 2.0 + train.steps * train.global_batch * train.sequence_tokens / 1e4
    return {"recall": 15.0, "answers": 10.0}.get(stage.kind, 2.0)
