"""How evaluations show on stderr that they advance: a line per step, a bar on a terminal."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from amnesia_bench.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress

_REDRAWS_PER_SECOND = 4
# The window of the speed estimate: one answer may take minutes, and rich's default is 30 s.
_SPEED_SECONDS = 3600.0


def hide_library_bars() -> None:
    """Keep libraries that are imported later from drawing bars of their own (tqdm)."""
    os.environ.setdefault("TQDM_DISABLE", "1")


class TerminalProgress:
    """Prints lines that stay and, on a terminal, a bar; leaving the `with` block removes the bar.

    A closed stderr stops nothing. `counted` names what is counted.
    """

    def __init__(self, counted: str = "answers") -> None:
        self._counted = counted
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove_bar()

    def say(self, line: str) -> None:
        """Write a line."""
        self._remove_bar()
        with suppress(OSError):
            sys.stderr.write(f"{printable(line)}\n")
            sys.stderr.flush()

    def count(self, done: int, total: int) -> None:
        """Show how many are done, and how long the rest will take."""
        if done == total:
            self._remove_bar()
        elif sys.stderr.isatty():
            with suppress(OSError):
                bar = self._bar or self._new_bar(total)
                bar.update(bar.task_ids[0], completed=done, total=total)

    def _new_bar(self, total: int) -> Progress:
        # Where a bar is drawn: rich takes longer to import than most commands to run.
        import rich.progress as bars
        from rich.console import Console

        self._bar = bars.Progress(
            bars.BarColumn(),
            bars.TextColumn(f"{{task.completed}} of {{task.total}} {self._counted}"),
            bars.TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=_REDRAWS_PER_SECOND,
            speed_estimate_period=_SPEED_SECONDS,
            transient=True,
            redirect_stdout=False,
        )
        self._bar.add_task(self._counted, total=total)
        self._bar.start()
        return self._bar

    def _remove_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            with suppress(OSError):
                bar.stop()
