"""Format paths for a report, which is read and committed on other machines than it was made on.

A path is written relative to the report's folder, or in notes and commands relative to the working
directory. If the two share only the root of the file system, the last two names are written; the
stage and the manifest hash identify the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

OUTSIDE = "..."  # replaces the part of a path that a report does not show


def relative(path: Path, folder: Path) -> str | None:
    """Return a path relative to a folder; None if they share no folder except the root."""
    target, start = (os.path.normpath(p.absolute()) for p in (path, folder))
    try:
        common = os.path.commonpath((target, start))
    except ValueError:  # different drives
        return None
    if Path(common).parent == Path(common):
        return None
    return Path(os.path.relpath(target, start)).as_posix()


def display_path(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, or its last two names without the top-level folder."""
    return relative(path, folder) or "/".join((OUTSIDE, *path.absolute().parts[2:][-2:]))


def typed_path(path: Path | str) -> str:
    """Return an absolute path relative to the working directory; any other text unchanged."""
    return display_path(Path(path), Path()) if Path(path).is_absolute() else str(path)


def portable(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command line without absolute paths."""
    parts = [argument.rpartition("=") for argument in command]
    return tuple(f"{head}{equals}{typed_path(path)}" for head, equals, path in parts)
