"""Write files durably (with fsync) and atomically, and explain write errors to the user."""

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

# A write beyond a limit on file sizes (ulimit -f) fails with EFBIG.
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BAD_PATH = {errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
# Larger than any JSON file of this package or of a checkpoint. The limit stops the reading of
# endless files, for example /dev/zero.
_MAX_JSON_BYTES = 256 << 20
# The form in which Rust libraries report the errno of a system error.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def write_json(path: Path, data: object) -> None:
    """Write a new JSON file and wait until it is on disk."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Replace a text file atomically: a reader sees either the old or the new content."""
    # The temporary name is always the same, so each attempt overwrites the file of a killed one.
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
        UserError: the file is missing, is a folder, is not JSON or is too large.
        MissingEnvironmentError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON_BYTES + 1)
        if len(data) > _MAX_JSON_BYTES:
            raise UserError(f"{path}: not JSON (more than {_MAX_JSON_BYTES >> 20} MiB)")
        return json.loads(data.decode("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder, but a file is needed") from error
    except OSError as error:
        raise MissingEnvironmentError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and wait until they are on disk.

    Raises:
        UserError: the path or one of its parents exists but is not a folder.
    """
    if folder.is_dir():
        return
    if os.path.lexists(folder):
        raise UserError(f"{folder}: exists and is not a folder")
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def remove_files(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the files in `folder` whose names match `names`, and then the folder if it is empty.

    Other files belong to the user and are kept. If a file cannot be removed, the function stops
    without an error.
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
    """Wait until the entries of a folder (the names of its files) are on disk."""
    try:
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        # Some network file systems refuse this call, since their folders are always durable.
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
    """Return the user-facing error for an error that occurred while writing `final`.

    The result is None for an error that has no such explanation, for example a bug. `kept` is the
    part of the message that states which results are kept.
    """
    if not isinstance(error, OSError):
        os_error = _RUST_ERROR.search(str(error))
        # A Rust library also reads files, so other errors may concern an unknown input file.
        if os_error is None or int(os_error[1]) not in _NO_SPACE:
            return None
        error = OSError(int(os_error[1]), os.strerror(int(os_error[1])))
    what = f"{error.filename or final}: {error.strerror}"
    if error.errno in _NO_SPACE:
        return StageFailedError(
            f"no space left while writing {final} ({what}); {kept}",
            hint=f"{_way_to_space(error.errno, final)}, or choose another output.",
        )
    if error.errno in _NOT_ALLOWED:
        return MissingEnvironmentError(
            f"no permission while writing {final} ({what}); {kept}",
            hint="Check the permissions of that path, or choose another output.",
        )
    if error.errno in _BAD_PATH:
        return UserError(f"cannot write {final} ({what}); {kept}")
    return None


def _way_to_space(code: int | None, final: Path) -> str:
    """Return what to do about a full disk, an exhausted quota or a limit on file sizes."""
    if code == errno.EFBIG:
        return "Raise the limit on file sizes (`ulimit -f`)"
    mount = nearest_existing(final).resolve()
    while not mount.is_mount():
        mount = mount.parent
    if code == errno.EDQUOT:
        return (
            f"Remove files of yours on the file system {mount}, whose quota is used up (`quota -s` "
            f"shows it, on Lustre `lfs quota -h {mount}`)"
        )
    return f"Free space on the file system {mount} (`df -h {mount}` shows it)"


@contextmanager
def explaining_write_errors(final: Path, kept: str) -> Iterator[None]:
    """Replace system errors in the block by user-facing errors; see `explain_write_error`.

    Raises:
        UserError, StageFailedError, MissingEnvironmentError: the replacement of a system error.
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


def owner_of(path: Path) -> str:
    """Return the name of the user to whom a file or folder belongs; its number without a name."""
    try:
        return path.owner()
    except KeyError:
        return f"the user with the number {path.stat().st_uid}"


def nearest_existing(path: Path) -> Path:
    """Return the path itself if it exists, otherwise its closest existing parent."""
    candidates = (path, *path.absolute().parents)
    return next(candidate for candidate in candidates if candidate.exists())
