"""Input files that must stay what they are from their hash to the last byte that is read of them.

A hash names contents; a path names whatever lies there now. Between the two a trainer may save, a
download may finish, a colleague may copy. So a reader notes which file it hashed (device, inode,
size, time of the last write) and compares before it files a result under that hash.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from amnesia_bench.errors import StageFailedError

# (device, inode, bytes, mtime_ns). Not the ctime: a new hardlink to the file changes that.
_State = tuple[int, int, int, int]


@dataclass(frozen=True)
class HeldFiles:
    """Files and the state in which they were found; links are followed."""

    states: tuple[tuple[Path, _State], ...]

    @classmethod
    def hold(cls, paths: Iterable[Path]) -> HeldFiles:
        """Note the state of files, before anything of them is read.

        Raises:
            OSError: one of them is not there.
        """
        return cls(tuple((path, _state(path.stat())) for path in sorted(set(paths))))

    def __add__(self, other: HeldFiles) -> HeldFiles:
        """Return both: of a file that both hold, each state must still be its own."""
        return HeldFiles(self.states + other.states)

    def check(self) -> None:
        """Compare every file with the state in which it was found.

        Raises:
            StageFailedError: one was replaced, written or removed since; names it.
        """
        for path, state in self.states:
            try:
                unchanged = _state(path.stat()) == state
            except OSError:
                unchanged = False
            if not unchanged:
                raise _changed(path)

    def check_link(self, path: Path, link: Path) -> None:
        """Make sure that a new hardlink to one of the files leads to the file that was found.

        Raises:
            StageFailedError: it leads to another file, or to one that was written since.
        """
        if _state(link.stat()) != dict(self.states)[path]:
            raise _changed(path)

    @contextmanager
    def reading(self, path: Path) -> Iterator[BufferedReader]:
        """Open one of the files, and make sure that it is the one that was found.

        Raises:
            StageFailedError: it is another file, one that was written since, or gone.
        """
        try:
            opened = path.open("rb")
        except FileNotFoundError as error:
            raise _changed(path) from error
        with opened as file:
            state = _state(os.fstat(file.fileno()))
            if any(held != state for held_path, held in self.states if held_path == path):
                raise _changed(path)
            yield file


def _state(stat: os.stat_result) -> _State:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _changed(path: Path) -> StageFailedError:
    return StageFailedError(
        f"{path}: was changed while it was in use; nothing that was read after the change is kept",
        hint="Run the same command again when nothing else writes to this folder.",
    )
