"""A report is made again when its cells, its files or the code changed, and else not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.pipeline.reporting import ReportCall, check_writable, is_current, mark_current
from amnesia_bench.store.layout import MANIFEST


@pytest.fixture
def call(tmp_path: Path) -> ReportCall:
    """A call whose page was just made."""
    source, out = tmp_path / "cells", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    (source / MANIFEST).write_text("{}")
    (out / "report.html").write_text("page")
    made = ReportCall(out=out, arguments=("--table=x",), sources=(source,))
    assert not is_current(made)
    mark_current(made)
    assert is_current(made)
    return made


def test_a_page_without_one_of_its_files_is_made_again(call: ReportCall) -> None:
    (call.out / "report.html").unlink()
    assert not is_current(call)


def test_cells_that_were_made_anew_are_read_again(call: ReportCall) -> None:
    (call.sources[0] / MANIFEST).write_text("{ }")
    assert not is_current(call)


@pytest.mark.parametrize("stamp", [b"", b"[\n", b"\xff\xfe"])
def test_a_stamp_that_is_half_written_is_none(call: ReportCall, stamp: bytes) -> None:
    (call.out / ".report.json").write_bytes(stamp)
    assert not is_current(call)


def test_a_folder_that_cannot_be_is_refused_beforehand(
    call: ReportCall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(call)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file"):
        check_writable(ReportCall(out=tmp_path / "file" / "x", arguments=(), sources=()))
    # Root may write anywhere, so nobody's permissions are asked.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    new = ReportCall(out=tmp_path / "new" / "x", arguments=(), sources=())
    with pytest.raises(MissingEnvironmentError, match="no report can be written"):
        check_writable(new)
    assert not (tmp_path / "new").exists()
