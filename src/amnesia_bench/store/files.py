"""Files that survive a crash: fsync, atomic JSON, and what a failed write means to the user."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amnesia_bench.errors import AmnesiaError, MissingEnvironmentError, StageFailedError, UserError

# EFBIG is what a limit on file sizes (ulimit -f) answers.
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BAD_PATH = {errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
# More than any JSON file of ours or of a checkpoint; a device such as /dev/zero has no end.
_MOST_JSON_BYTES = 256 << 20
# How libraries in Rust say which error of the system stopped them.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def write_json(path: Path, data: object) -> None:
    """Write a new JSON file and wait until it is on disk."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Write a text file under its name in one step: readers see the old one or the new one."""
    # One name for all attempts: what a killed one left is overwritten by the next.
    work = path.with_name(f".{path.name}.new")
    with work.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    work.replace(path)
    sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: the file is missing, is not JSON or has no end.
        MissingEnvironmentError: it may not be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_JSON_BYTES + 1)
        if len(data) > _MOST_JSON_BYTES:
            raise UserError(f"{path}: not JSON (more than {_MOST_JSON_BYTES >> 20} MiB)")
        return json.loads(data.decode("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise MissingEnvironmentError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and wait until they are on disk.

    Raises:
        UserError: something on the way exists and is not a folder.
    """
    if folder.is_dir():
        return
    if os.path.lexists(folder):
        raise UserError(f"{folder}: exists and is not a folder")
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def remove_files(folder: Path, names: re.Pattern[str]) -> None:
    """Remove files of these names from a folder, and the folder if nothing else is in it.

    Whatever else is there is somebody's own. What cannot be removed stays.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if names.fullmatch(path.name):
                path.unlink()
        folder.rmdir()


def sync_file(path: Path) -> None:
    """Wait until the contents of a file are on disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    try:
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        # Some network file systems keep names durable by themselves and refuse the call.
        if error.errno != errno.EINVAL:
            raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explain_write_error(
    error: Exception, final: Path, kept: str = "nothing of it was kept"
) -> AmnesiaError | None:
    """Return what an error while writing `final` means to the user; None when it is a bug.

    `kept` says in the message what has become of the work so far.
    """
    if not isinstance(error, OSError):
        found = _RUST_ERROR.search(str(error))
        # Such a library also reads: of other errors nobody knows which file they are about.
        if found is None or int(found[1]) not in _NO_SPACE:
            return None
        error = OSError(int(found[1]), os.strerror(int(found[1])))
    what = f"{error.filename or final}: {error.strerror}"
    if error.errno in _NO_SPACE:
        return StageFailedError(
            f"no space left while making {final} ({what}); {kept}",
            hint=f"Free space on the file system of {final.parent}, or choose another output.",
        )
    if error.errno in _NOT_ALLOWED:
        return MissingEnvironmentError(
            f"no permission while making {final} ({what}); {kept}",
            hint="Check the permissions of that path, or choose another output.",
        )
    if error.errno in _BAD_PATH:
        return UserError(f"cannot write {final} ({what}); {kept}")
    return None


@contextmanager
def explaining_write_errors(final: Path, kept: str) -> Iterator[None]:
    """Turn an error of the system in the block into what it means; see `explain_write_error`.

    Raises:
        UserError, StageFailedError, MissingEnvironmentError: instead of the system's error.
    """
    try:
        yield
    except AmnesiaError:
        raise
    except Exception as error:
        explained = explain_write_error(error, final, kept)
        if explained is None:
            raise
        raise explained from error


def nearest_existing(path: Path) -> Path:
    """Return the path itself, or the innermost folder above it that is there."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())
