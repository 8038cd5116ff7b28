"""What was hashed is what was read: a change in between is found, whatever its kind."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from amnesia_bench.errors import StageFailedError
from amnesia_bench.store.held_files import HeldFiles


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"X")


def touched(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


CHANGES: list[Callable[[Path], None]] = [
    replaced,
    overwritten,
    touched,
    lambda path: os.truncate(path, 1),
    lambda path: path.unlink(),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_was_changed_is_named(change: Callable[[Path], None], path: Path) -> None:
    held = HeldFiles.hold([path])
    held.check()
    change(path)
    with pytest.raises(StageFailedError, match=r"model\.safetensors: was changed"):
        held.check()


@pytest.mark.parametrize("change", CHANGES)
def test_only_the_file_that_was_held_is_read(change: Callable[[Path], None], path: Path) -> None:
    held = HeldFiles.hold([path])
    with held.reading(path) as file:
        assert file.read() == b"weights"
    change(path)
    with pytest.raises(StageFailedError), held.reading(path):
        pass


def test_a_link_to_another_file_of_the_same_bytes_is_a_change(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "snapshot"
    link.symlink_to(path)
    held = HeldFiles.hold([link])
    shutil.copy2(path, tmp_path / "blob")
    link.unlink()
    link.symlink_to(tmp_path / "blob")
    with pytest.raises(StageFailedError, match="snapshot"):
        held.check()


def test_a_hardlink_is_no_change_and_a_copy_is_no_hardlink(path: Path, tmp_path: Path) -> None:
    held = HeldFiles.hold([path])
    (tmp_path / "link").hardlink_to(path)
    held.check()
    held.check_link(path, tmp_path / "link")
    shutil.copy2(path, tmp_path / "copy")
    with pytest.raises(StageFailedError):
        held.check_link(path, tmp_path / "copy")


def test_files_held_at_two_times_must_each_be_what_they_were(path: Path) -> None:
    first = HeldFiles.hold([path])
    touched(path)
    with pytest.raises(StageFailedError):
        (first + HeldFiles.hold([path])).check()
