"""Paths as a report may show them: it is read, and committed, on other machines than it was made.

A path is written relative to the report's folder; in notes and commands to the one they were typed
in. Where the two have only the root of the file
system in common, the last two names must do; stage and manifest hash tell the rest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

OUTSIDE = "..."  # stands for the part of a path that is told to no one


def relative(path: Path, folder: Path) -> str | None:
    """Return a path as seen from a folder; None where they share no folder but the root."""
    target, start = (os.path.normpath(each.absolute()) for each in (path, folder))
    try:
        common = os.path.commonpath((target, start))
    except ValueError:  # different drives
        return None
    if Path(common).parent == Path(common):
        return None
    return Path(os.path.relpath(target, start)).as_posix()


def shown(path: Path, folder: Path) -> str:
    """Return a path as seen from a folder, or else its last two names, without the first of all."""
    return relative(path, folder) or "/".join((OUTSIDE, *path.absolute().parts[2:][-2:]))


def typed_path(path: Path | str) -> str:
    """Return a path as one would type it here; a text that is no absolute path as it is."""
    return shown(Path(path), Path()) if Path(path).is_absolute() else str(path)


def portable(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command line without absolute paths."""
    parts = [argument.rpartition("=") for argument in command]
    return tuple(f"{head}{equals}{typed_path(path)}" for head, equals, path in parts)
