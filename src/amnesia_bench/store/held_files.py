"""Detect input files that change between hashing and the last read.

A hash identifies contents, but files are read by path. Between hashing and reading, a training run
may save, a download may finish, or a colleague may copy files. So a reader records the state of
each file (device, inode, size, mtime) before hashing the file, and compares the state again before
storing a result under that hash.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from amnesia_bench.errors import StageFailedError

# (device, inode, bytes, mtime_ns). The ctime is left out, since a new hard link changes it.
_State = tuple[int, int, int, int]


@dataclass(frozen=True)
class HeldFiles:
    """Files with their recorded states; symbolic links are followed."""

    states: tuple[tuple[Path, _State], ...]

    @classmethod
    def hold(cls, paths: Iterable[Path]) -> HeldFiles:
        """Record the state of files before they are read.

        Raises:
            OSError: a file is missing.
        """
        return cls(tuple((path, _state(path.stat())) for path in sorted(set(paths))))

    def __add__(self, other: HeldFiles) -> HeldFiles:
        """Return the files of both; a file that is in both must match both recorded states."""
        return HeldFiles(self.states + other.states)

    def check(self) -> None:
        """Compare every file with its recorded state.

        Raises:
            StageFailedError: a file was replaced, written or removed since it was recorded.
        """
        for path, state in self.states:
            try:
                unchanged = _state(path.stat()) == state
            except OSError:
                unchanged = False
            if not unchanged:
                raise _changed(path)

    def check_link(self, path: Path, link: Path) -> None:
        """Check that `link`, a new hard link to `path`, refers to the recorded file.

        Raises:
            StageFailedError: the link refers to another file, or the file was written since it was
                recorded.
        """
        if _state(link.stat()) != dict(self.states)[path]:
            raise _changed(path)

    @contextmanager
    def reading(self, path: Path) -> Iterator[BufferedReader]:
        """Open one of the files for reading, and check that it is the recorded file.

        Raises:
            StageFailedError: the file was replaced, written or removed since it was recorded.
        """
        try:
            opened = path.open("rb")
        except FileNotFoundError as error:
            raise _changed(path) from error
        with opened as file:
            state = _state(os.fstat(file.fileno()))
            if any(noted != state for noted_path, noted in self.states if noted_path == path):
                raise _changed(path)
            yield file


def _state(stat: os.stat_result) -> _State:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _changed(path: Path) -> StageFailedError:
    return StageFailedError(
        f"{path}: was changed while it was in use; nothing that was read after the change is kept",
        hint="Run the same command again while no other program writes to this folder.",
    )
