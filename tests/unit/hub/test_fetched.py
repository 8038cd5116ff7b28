"""Where fetched data is, whatever the name of its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from amnesia_bench.hub.fetched import HubFiles, WebFile, fetched_path, find_fetched


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("openai/gsm8k", "openai-gsm8k"),
        ("/a folder/set", "a-folder-set"),
        ("x" * 300, "x" * 80),
        ("..", "data"),
        ("ü/ö", "data"),
    ],
)
def test_every_source_has_a_folder(tmp_path: Path, source: str, name: str) -> None:
    folder = fetched_path(tmp_path, HubFiles(repository=source))
    assert folder.parent == tmp_path / "hub"
    assert folder.name.rpartition("-")[0] == name
    assert find_fetched(HubFiles(repository=source), tmp_path) is None


def test_each_selection_has_its_own(tmp_path: Path) -> None:
    selections = [
        HubFiles(repository="a/b"),
        HubFiles(repository="a/b", revision="c" * 40),
        HubFiles(repository="a/b", subsets=("x",)),
        HubFiles(repository="a/b", subsets=("x",), split="train"),
        HubFiles(repository="a/b", subsets=("x",), split="train", take_files=1),
        HubFiles(repository="a/b", names=("x",)),
        WebFile(url="a/b"),
    ]
    assert len({fetched_path(tmp_path, selection) for selection in selections}) == 7
