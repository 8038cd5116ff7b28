"""What reports say of cells that they cannot take, and of names that are not meant well."""

import json
from pathlib import Path

import pytest

from amnesia_bench.store.hashing import sha256_of
from tests.e2e.test_report_cli import refused, report
from tests.support.report_cells import forgetful, write_recall, write_scores


def sign(folder: Path) -> None:
    """Let the manifest of an artifact say what its files hold now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        path = folder / entry["path"]
        entry |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_cells_of_another_version_are_not_called_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = write_recall(tmp_path / "newer", "post", forgetful("post"), samples=5)
    cells = json.loads((newer / "cells.json").read_text())
    (newer / "cells.json").write_text(json.dumps([cell | {"unit": "share"} for cell in cells]))
    sign(newer)
    given = ("--table", "table1", "--cells", f"tiny={newer}")
    said = refused(capsys, tmp_path / "out", *given)
    assert "unknown key 'unit'" in said
    assert "Another version of amnesia-bench wrote this file" in said
    assert "remove" not in said


def test_hostile_names_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>[a](javascript:b)`|"
    folder = write_recall(tmp_path / hostile, "post", forgetful("post"), samples=5)
    for name in ("cells.json", "manifest.json"):
        data = json.loads((folder / name).read_text())
        for cell in data if name == "cells.json" else []:
            cell["settings"][hostile] = hostile
        if name == "manifest.json":
            data["provenance"] |= {"commit": hostile, "dirty": True}
        (folder / name).write_text(json.dumps(data))
    sign(folder)
    assert report(tmp_path / "out", [f"tiny={folder}", f"<b>`[x]={folder}"]) == 0
    for path in (tmp_path / "out").glob("*.md"):
        text = path.read_text()
        assert "<img" not in text
        assert "[a](" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;\\[a\\](javascript:b)" in text
    assert "<img" not in (tmp_path / "out" / "report.html").read_text()


def test_tasks_without_a_column_are_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recall = write_recall(tmp_path / "recall", "post", forgetful("post"), samples=5)
    write_scores(recall / "scores", "post", {"math500": 0.4, "gsm8k": 0.5})
    assert report(tmp_path / "out", [f"tiny={recall}"], table="table4") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: no")]
    lacking = "niah_single_1 at 1024, niah_single_1 at 4096, gsm8k"
    assert notes == [f"note: no column in table4: {lacking}"]
