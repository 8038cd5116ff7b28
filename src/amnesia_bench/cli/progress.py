"""Show the progress of evaluations on stderr: a line per step and, on a terminal, a bar."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from amnesia_bench.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress

_REDRAWS_PER_SECOND = 4
# Time window from which the speed is estimated. Rich's default of 30 s is too short, because one
# answer may take minutes.
_SPEED_SECONDS = 3600.0


def hide_library_bars() -> None:
    """Disable the tqdm progress bars of libraries that are imported after this call."""
    os.environ.setdefault("TQDM_DISABLE", "1")


class TerminalProgress:
    """Prints lines and, on a terminal, a progress bar below them.

    The end of the `with` block removes the bar. Errors are ignored if stderr is closed. `unit` is
    the noun for what is counted, in the plural.
    """

    def __init__(self, unit: str = "answers") -> None:
        self._unit = unit
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove_bar()

    def say(self, line: str) -> None:
        """Print a line."""
        self._remove_bar()
        with suppress(OSError):
            sys.stderr.write(f"{printable(line)}\n")
            sys.stderr.flush()

    def count(self, done: int, total: int) -> None:
        """Show the number of finished units and the estimated time for the remaining ones."""
        if done == total:
            self._remove_bar()
        elif sys.stderr.isatty():
            with suppress(OSError):
                bar = self._bar or self._new_bar(total)
                bar.update(bar.task_ids[0], completed=done, total=total)

    def _new_bar(self, total: int) -> Progress:
        # Imported here because importing rich takes longer than most commands.
        import rich.progress as bars
        from rich.console import Console

        self._bar = bars.Progress(
            bars.BarColumn(),
            bars.TextColumn(f"{{task.completed}} of {{task.total}} {self._unit}"),
            bars.TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=_REDRAWS_PER_SECOND,
            speed_estimate_period=_SPEED_SECONDS,
            transient=True,
            redirect_stdout=False,
        )
        self._bar.add_task(self._unit, total=total)
        self._bar.start()
        return self._bar

    def _remove_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            with suppress(OSError):
                bar.stop()
