"""Temporary folders that are removed even if their process is killed.

The next process that creates one removes the folders of dead processes.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from amnesia_bench.store.processes import is_alive, this_process

_NAME = re.compile(
    r"amnesia-run-(?P<machine>[0-9a-f]{8})-(?P<pid>\d{1,9})-(?P<start>-?\d{1,18})-.+"
)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Create a temporary folder that only this user can access, and remove it after the block.

    The folders of killed processes are removed first.
    """
    folder = _new_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lasting_scratch_folder() -> Path:
    """Create a folder like that of `scratch_folder`, but remove it when this process exits."""
    folder = _new_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _new_folder() -> Path:
    _remove_leftovers_of_dead_processes(Path(tempfile.gettempdir()))
    me = this_process()
    # The name is short, because Linux limits the path of a socket in the folder to 107 bytes.
    prefix = f"amnesia-run-{_short(me.machine)}-{me.pid}-{me.process_start or 0}-"
    return Path(tempfile.mkdtemp(prefix=prefix))


def _remove_leftovers_of_dead_processes(top: Path) -> None:
    me = this_process()
    for path in top.glob("amnesia-run-*"):
        match = _NAME.fullmatch(path.name)
        # The pid of another container that shares the parent folder has no meaning in this one.
        if match is None or match["machine"] != _short(me.machine) or not _is_our_folder(path):
            continue
        start = int(match["start"]) or None
        if not is_alive(replace(me, pid=int(match["pid"]), process_start=start)):
            shutil.rmtree(path, ignore_errors=True)


def _is_our_folder(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:  # the folder was removed meanwhile
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _short(machine: str) -> str:
    return hashlib.sha256(machine.encode()).hexdigest()[:8]
