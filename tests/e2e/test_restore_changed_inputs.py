"""Something writes to the inputs of a restore while it runs: nothing is published."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import StageFailedError
from amnesia_bench.surgery import restoration
from tests.support.checkpoints import drifted, random_model, save
from tests.support.surgery import restore

# The steps of a restore, in their order, by the functions that do them.
STEPS = ("compute_edits", "write_shards", "check_tensors", "_record", "write_json")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    model = random_model(1)
    save(tmp_path / "pre", model)
    save(tmp_path / "post", drifted(model, 2), shards=3)
    save(tmp_path / "newer", drifted(model, 3), shards=3)
    return tmp_path


def in_place(path: Path, newer: Path) -> None:
    with path.open("r+b") as file:
        file.write(newer.read_bytes())


def by_rename(path: Path, newer: Path) -> None:
    shutil.copyfile(newer, path.with_name("saving"))
    path.with_name("saving").rename(path)


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("save_over", [in_place, by_rename])
def test_a_fine_tune_that_is_saved_meanwhile_ends_in_no_mixture(
    save_over: Callable[[Path, Path], None],
    step: str,
    folders: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original: Callable[..., Any] = getattr(restoration, step)

    def overtaken(*arguments: Any, **named: Any) -> Any:
        for name in shards(folders / "newer"):
            save_over(folders / "post" / name, folders / "newer" / name)
        return original(*arguments, **named)

    monkeypatch.setattr(restoration, step, overtaken)
    with pytest.raises(StageFailedError, match=r"post/model.*: was changed"):
        restore(folders / "pre", folders / "post", folders / "out")
    assert not (folders / "out").exists()
    monkeypatch.setattr(restoration, step, original)
    restore(folders / "pre", folders / "post", folders / "out")


@pytest.mark.parametrize("step", STEPS)
def test_a_fine_tune_that_its_trainer_removes_meanwhile_is_named(
    step: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = getattr(restoration, step)

    def overtaken(*arguments: Any, **named: Any) -> Any:
        shutil.rmtree(folders / "post")  # as save_total_limit does with the oldest checkpoint
        return original(*arguments, **named)

    monkeypatch.setattr(restoration, step, overtaken)
    with pytest.raises(StageFailedError, match=r"post/.*: was changed"):
        restore(folders / "pre", folders / "post", folders / "out")
    assert not (folders / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_side_file_that_is_saved_meanwhile_is_found(
    name: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def overtaken(source: Path, target: Path) -> None:
        copy(source, target)
        if source == folders / "post" / name:
            os.utime(source)

    monkeypatch.setattr(shutil, "copyfile", overtaken)
    with pytest.raises(StageFailedError, match=rf"{name}: was changed"):
        restore(folders / "pre", folders / "post", folders / "out")
    assert not (folders / "out").exists()


def test_a_base_that_is_replaced_meanwhile_is_found(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = restoration.write_shards

    def overtaken(*arguments: Any) -> Any:
        by_rename(folders / "pre" / "model.safetensors", folders / "pre" / "model.safetensors")
        return original(*arguments)

    monkeypatch.setattr(restoration, "write_shards", overtaken)
    with pytest.raises(StageFailedError, match=r"pre/model\.safetensors: was changed"):
        restore(folders / "pre", folders / "post", folders / "out")
    assert not (folders / "out").exists()
