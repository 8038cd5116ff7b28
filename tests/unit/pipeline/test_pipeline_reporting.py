"""A report is made again when its cells, its files or the code changed, and else not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.pipeline.reporting import (
    ReportCall,
    check_writable,
    edited_files,
    is_current,
    mark_current,
)
from amnesia_bench.requests.experiments import ReportRequest
from amnesia_bench.store.layout import MANIFEST


def call_of(out: Path, *sources: Path) -> ReportCall:
    return ReportCall(request=ReportRequest(tables=("x",)), out=out, sources=sources)


@pytest.fixture
def call(tmp_path: Path) -> ReportCall:
    """A call whose page was just made."""
    source, out = tmp_path / "cells", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    (source / MANIFEST).write_text("{}")
    for name in ("x.md", "report.html"):
        (out / name).write_text("page")
    made = call_of(out, source)
    assert not is_current(made)
    mark_current(made, [out / "x.md", out / "report.html"])
    assert is_current(made)
    return made


def test_a_page_without_one_of_its_files_is_made_again(call: ReportCall) -> None:
    (call.out / "report.html").unlink()
    assert not is_current(call)
    assert edited_files(call) == ["report.html"]


def test_a_file_that_was_edited_is_named(call: ReportCall) -> None:
    path = call.out / "x.md"
    stat = path.stat()
    path.write_text("pace")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not is_current(call)
    assert edited_files(call) == ["x.md"]


def test_a_file_of_somebody_elses_is_no_concern(call: ReportCall) -> None:
    (call.out / "notes.txt").write_text("mine")
    assert is_current(call)


def test_another_request_is_another_page(call: ReportCall) -> None:
    overrides = {"overrides": ("report.recall.lengths=[1024]",)}
    request = call.request.model_copy(update=overrides)
    assert not is_current(replace(call, request=request))
    assert edited_files(call) == []


def test_cells_that_were_made_anew_are_read_again(call: ReportCall) -> None:
    (call.sources[0] / MANIFEST).write_text("{ }")
    assert not is_current(call)


@pytest.mark.parametrize("stamp", [b"", b"[\n", b"\xff\xfe", b"[]", b"{}", b'{"files": 3}'])
def test_a_stamp_that_is_half_written_is_none(call: ReportCall, stamp: bytes) -> None:
    (call.out / ".report.json").write_bytes(stamp)
    assert not is_current(call)
    assert edited_files(call) == []


def test_a_folder_that_cannot_be_is_refused_beforehand(
    call: ReportCall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(call)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file"):
        check_writable(call_of(tmp_path / "file" / "x"))
    # Root may write anywhere, so nobody's permissions are asked.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    new = call_of(tmp_path / "new" / "x")
    with pytest.raises(MissingEnvironmentError, match="report cannot be written"):
        check_writable(new)
    assert not (tmp_path / "new").exists()
