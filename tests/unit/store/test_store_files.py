import errno
import os
import threading
from pathlib import Path

import pytest

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.store import files
from amnesia_bench.store.files import (
    explain_write_error,
    explaining_write_errors,
    make_folder,
    read_json,
    replace_text,
    sync_folder,
)


def test_json_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not JSON"):
        read_json(tmp_path / "deep.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match="is a folder, but a file is needed"):
        read_json(tmp_path / "folder.json")
    with pytest.raises(MissingEnvironmentError, match="cannot be read"):
        read_json(tmp_path / ("x" * 300))  # longer than a name may be


def test_reading_names_the_file_that_is_missing_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json: no such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b'{"x": 1')
    with pytest.raises(UserError, match=r"b\.json: not JSON"):
        read_json(tmp_path / "b.json")
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"c\.json: not JSON"):
        read_json(tmp_path / "c.json")


def test_folders_are_made_on_the_way_and_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: exists and is not a folder"):
        make_folder(tmp_path / "file" / "b")


def test_file_systems_that_cannot_sync_folders_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = errno.EINVAL

    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", refuse)
    sync_folder(tmp_path)
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StageFailedError),
        (errno.EDQUOT, StageFailedError),
        (errno.EFBIG, StageFailedError),
        (errno.EROFS, MissingEnvironmentError),
        (errno.EACCES, MissingEnvironmentError),
        (errno.EPERM, MissingEnvironmentError),
        (errno.ENOTDIR, UserError),
    ],
)
def test_write_errors_are_told_apart(code: int, kind: type[Exception]) -> None:
    explained = explain_write_error(OSError(code, os.strerror(code), "some/file"), Path("out"))
    assert type(explained) is kind
    assert "out" in str(explained)
    assert "some/file" in str(explained)


def test_other_os_errors_stay_what_they_are() -> None:
    assert explain_write_error(FileNotFoundError(errno.ENOENT, "x", "y"), Path("out")) is None


def test_a_full_disk_that_a_rust_library_reports_is_the_same_message() -> None:
    class SafetensorError(Exception):
        pass

    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    full = pytest.raises(StageFailedError, match="no space left while writing out")
    with full, explaining_write_errors(Path("out"), "the saves are kept"):
        raise SafetensorError(said)
    for other in ("I/O error: Permission denied (os error 13)", "InvalidHeader"):
        with pytest.raises(SafetensorError), explaining_write_errors(Path("out"), ""):
            raise SafetensorError(other)


def test_a_json_file_without_end_is_refused_and_a_pipe_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/dev/zero: not JSON \(more than 256 MiB"):
        read_json(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=('{"x": 1}',))
    writer.start()
    assert read_json(tmp_path / "pipe") == {"x": 1}
    writer.join()


def test_a_text_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.md"
    replace_text(path, "old\n")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("died")))
    with pytest.raises(OSError, match="died"):
        replace_text(path, "new and half writ")
    assert path.read_text() == "old\n"
    monkeypatch.undo()
    replace_text(path, "new\n")
    assert path.read_text() == "new\n"
    assert [each.name for each in tmp_path.iterdir()] == ["report.md"]
