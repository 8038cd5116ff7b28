"""Print the output of commands: tables and sentences for users, or a JSON document for programs.

rich is imported inside functions, so that `--help` and `--json` do not wait for its import.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.printable import message, printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_SHOWN_CHARACTERS = 80


def show(renderable: Table | Text) -> None:
    """Print a table or styled text, as wide as the terminal; use `say` for sentences."""
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    # Not stdout itself: if rich writes to it and the disk is full, the error looks like a bug.
    text = io.StringIO()
    # Markup is disabled because file names may contain brackets.
    Console(
        file=text,
        force_terminal=terminal or None,  # None: FORCE_COLOR decides
        width=None if terminal else 200,
        highlight=False,
        markup=False,
    ).print(renderable, soft_wrap=not isinstance(renderable, Table))
    _write(text.getvalue())


def say(sentence: str) -> None:
    """Print a sentence without wrapping, so that paths in it can be copied."""
    _write(f"{printable(sentence)}\n")


def tell(line: str) -> None:
    """Print a line to stderr, so that it does not appear in the output that programs parse."""
    with suppress(OSError):  # stderr is closed
        sys.stderr.write(message(f"{line}\n"))


def _write(text: str) -> None:
    # Flush now, so that errors are raised here and not when the process ends.
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe (for example `| head`). The command continues without
        # output, so that it returns its usual exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise MissingEnvironmentError(f"stdout: {error.strerror}") from error


def table(title: str, columns: Sequence[str], *, left: int = 1) -> Table:
    """Return an empty table; the first `left` columns are left-aligned, others right-aligned."""
    from rich.box import SIMPLE
    from rich.table import Table

    class PrintableTable(Table):
        def add_row(self, *cells: Any, **style: Any) -> None:
            safe = (printable(cell) if isinstance(cell, str) else cell for cell in cells)
            super().add_row(*safe, **style)

    grid = PrintableTable(title=printable(title), title_justify="left", box=SIMPLE, pad_edge=False)
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i < left else "right", overflow="fold")
    return grid


def print_json(record: Any) -> None:
    """Print one record, which is a dataclass or plain data, as JSON."""
    say(json.dumps(plain(record), indent=2, default=str, allow_nan=False))


def plain(record: Any) -> Any:
    """Return the fields of a dataclass as a dict; return any other value unchanged."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return dataclasses.asdict(record)
    return record


def size(num_bytes: float) -> str:
    """Return a number of bytes as readable text in decimal units (1 kB = 1,000 B)."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage; "-" for None."""
    return "-" if fraction is None else f"{100 * fraction:.3g} %"


def typed(*words: object) -> str:
    """Return the `amnesia` command with these arguments, quoted for a shell."""
    return shlex.join(["amnesia", *map(str, words)])


def shortened(text: str) -> str:
    """Return the text, truncated if it is too long for a message."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
