"""Format paths for a report, which may be read and committed on other machines.

A path is written relative to the report's folder; in notes and commands it is written relative to
the working directory. If path and folder share only the root of the file system, only the last two
names of the path are written; the stage and the manifest hash then identify the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

OUTSIDE = "..."  # replaces the part of a path that a report does not show


def relative(path: Path, folder: Path) -> str | None:
    """Return a path relative to a folder; None if they have no common parent except the root."""
    target, start = (os.path.normpath(p.absolute()) for p in (path, folder))
    try:
        common = os.path.commonpath((target, start))
    except ValueError:  # different drives
        return None
    if Path(common).parent == Path(common):
        return None
    return Path(os.path.relpath(target, start)).as_posix()


def display_path(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, or `...` and its last two names if that is impossible.

    The top-level folder of the path is never one of these names.
    """
    return relative(path, folder) or "/".join((OUTSIDE, *path.absolute().parts[2:][-2:]))


def typed_path(path: Path | str) -> str:
    """Make an absolute path relative to the working directory; return any other text unchanged."""
    return display_path(Path(path), Path()) if Path(path).is_absolute() else str(path)


def portable(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command line without absolute paths."""
    parts = [argument.rpartition("=") for argument in command]
    return tuple(f"{head}{equals}{typed_path(path)}" for head, equals, path in parts)
