"""A report tells where things lie from where it lies itself, and nothing of the machine."""

from pathlib import Path

import pytest

from amnesia_bench.reporting.paths import OUTSIDE, display_path, portable, relative, typed_path


def test_a_path_is_told_from_the_folder_of_the_report() -> None:
    assert relative(Path("/data/me/store/a/manifest.json"), Path("/data/me/out")) == (
        "../store/a/manifest.json"
    )
    assert relative(Path("/data/me/out/x"), Path("/data/me/store/../out")) == "x"
    assert display_path(Path("/data/me/out"), Path("/data/me/out")) == "."


def test_where_only_the_root_is_common_the_last_names_must_do() -> None:
    assert relative(Path("/scratch/a/b/c"), Path("/data/out")) is None
    assert display_path(Path("/scratch/a/b/c"), Path("/data/out")) == f"{OUTSIDE}/b/c"
    assert display_path(Path("/scratch/b"), Path("/data/out")) == f"{OUTSIDE}/b"
    assert display_path(Path("/scratch"), Path("/data/out")) == OUTSIDE


def test_a_command_is_told_as_typed_but_for_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        *("amnesia", "report", "--cells", f"tiny/post@x/0={tmp_path / 'store' / 'a'}"),
        *("--out", "/elsewhere/deep/results", "report.models=[tiny]", "--drift=relative/file"),
    ]
    assert portable(command) == (
        *("amnesia", "report", "--cells", "tiny/post@x/0=store/a"),
        *("--out", f"{OUTSIDE}/deep/results", "report.models=[tiny]", "--drift=relative/file"),
    )
    assert typed_path("strict") == "strict"
