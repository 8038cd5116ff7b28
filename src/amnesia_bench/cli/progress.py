"""How evaluations show their progress on stderr: a line per step, a count on a terminal."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from amnesia_bench.printable import printable

_REDRAW_SECONDS = 0.2
_ERASE = "\r\x1b[K"


def hide_library_bars() -> None:
    """Keep libraries that are imported later from drawing bars of their own (tqdm)."""
    os.environ.setdefault("TQDM_DISABLE", "1")


class TerminalProgress:
    """Lines that stay, and between them on a terminal one that moves.

    A closed stderr stops nothing. `counted` names what is counted.
    """

    def __init__(self, counted: str = "answers") -> None:
        self._counted = counted
        self._terminal = sys.stderr.isatty()
        self._began = self._drawn = 0.0

    def say(self, line: str) -> None:
        """Write a line."""
        self._write(f"{_ERASE if self._terminal else ''}{printable(line)}\n")

    def count(self, done: int, total: int) -> None:
        """Show how many are done, and how long the others will take."""
        if not self._terminal:
            return
        now = time.monotonic()
        if done == 0:
            self._began = now
        elif done < total and now - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = now
        left = f", {_duration((now - self._began) / done * (total - done))} left" if done else ""
        self._write(
            f"{_ERASE}  {done} of {total} {self._counted}{left}" if done < total else _ERASE
        )

    def _write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
