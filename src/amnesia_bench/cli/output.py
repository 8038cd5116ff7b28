"""How commands print: tables and sentences for people, one JSON document for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console() -> Console:
    """Return a console on stdout for tables; sentences go through `say`."""
    from rich.console import Console

    class Stdout(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # as the other ways of writing do; rich would exit with 1

    width = None if sys.stdout.isatty() else 200
    # No markup: the brackets in the name of a file are not ours to interpret.
    return Stdout(highlight=False, markup=False, width=width)


def say(sentence: str) -> None:
    """Print a sentence as it is, whatever the width: paths in it are there to be copied."""
    sys.stdout.write(f"{sentence}\n")


def table(title: str, columns: Sequence[str], *, left: int = 1) -> Table:
    """Return an empty table; the first `left` columns hold text, the others numbers."""
    from rich.box import SIMPLE
    from rich.table import Table

    grid = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i < left else "right", overflow="fold")
    return grid


def print_json(record: Any) -> None:
    """Write one record (a dataclass or plain data) to stdout as JSON."""
    json.dump(plain(record), sys.stdout, indent=2, default=str, allow_nan=False)
    sys.stdout.write("\n")


def plain(record: Any) -> Any:
    """Return a dataclass as plain data; anything else unchanged."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return dataclasses.asdict(record)
    return record


def size(num_bytes: float) -> str:
    """Return a byte count for people, in decimal units as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage; "-" where there is none."""
    return "-" if fraction is None else f"{100 * fraction:.3g} %"
