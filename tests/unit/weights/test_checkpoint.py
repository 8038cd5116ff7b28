"""A folder is opened only when every reader of it would see the same weights."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.weights.checkpoint import open_checkpoint
from amnesia_bench.weights.side_files import side_files
from tests.support.checkpoints import (
    random_model,
    save,
    tensor_bytes,
    write_index,
    write_safetensors,
)

SHARD = "model-00001-of-00003.safetensors"


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_read_from_one_file_or_several(tmp_path: Path, shards: int) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "c", random_model(0), shards=shards))
    expected = tensor_bytes(tmp_path / "c")
    assert len(checkpoint.shards) == shards
    assert {name: checkpoint.read(name) for name in checkpoint.tensors} == expected
    assert b"".join(checkpoint.pieces("model.norm.weight", 5)) == expected["model.norm.weight"]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save(tmp_path / "c", random_model(0), shards=3)


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def refusal(folder: Path) -> UserError:
    with pytest.raises(UserError) as refused:
        open_checkpoint(folder)
    return refused.value


def test_an_index_naming_a_missing_file(sharded: Path) -> None:
    (sharded / SHARD).unlink()
    assert SHARD in refusal(sharded).what


@pytest.mark.parametrize(
    "target", ["../elsewhere.safetensors", "/etc/passwd", "a/b", "", "a\0b", 7]
)
def test_path_traversal_in_an_index(sharded: Path, target: object) -> None:
    write_safetensors(sharded.parent / "elsewhere.safetensors", random_model(0), [], "F32")
    names = weight_map(sharded)
    write_index(sharded, dict.fromkeys(names, target))
    assert "is not a file name in this folder" in refusal(sharded).what


def test_an_index_that_disagrees_with_its_shards(sharded: Path) -> None:
    names = weight_map(sharded)
    write_index(sharded, names | {"model.norm.weight": SHARD})
    assert "maps 'model.norm.weight'" in refusal(sharded).what
    write_index(sharded, names | {"invented": SHARD})
    assert "no shard has it" in refusal(sharded).what
    del names["model.norm.weight"]
    write_index(sharded, names)
    assert "does not list 'model.norm.weight'" in refusal(sharded).what


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    model = random_model(0)
    first = [name for name, shard in weight_map(sharded).items() if shard == SHARD]
    write_safetensors(sharded / SHARD, model, [*first, "model.norm.weight"], "BF16")
    assert "'model.norm.weight' is in both" in refusal(sharded).what


def test_a_single_file_beside_an_index_that_does_not_name_it(sharded: Path) -> None:
    write_safetensors(sharded / "model.safetensors", random_model(0), ["model.norm.weight"], "F32")
    assert "holds both" in refusal(sharded).what


@pytest.mark.parametrize("name", [SHARD, "model.safetensors.index.json", "config.json"])
def test_links_are_followed_wherever_they_lead(tmp_path: Path, sharded: Path, name: str) -> None:
    expected = tensor_bytes(sharded)
    outside = tmp_path / "blobs" / "abc"
    outside.parent.mkdir()
    (sharded / name).rename(outside)
    (sharded / name).symlink_to(outside)
    checkpoint = open_checkpoint(sharded)
    assert {name: checkpoint.read(name) for name in checkpoint.tensors} == expected
    outside.unlink()
    assert f"{name}: is a broken link" in refusal(sharded).what


def test_links_to_something_that_is_no_checkpoint(sharded: Path) -> None:
    for target, says in (
        ("/dev/zero", "is missing or not a file"),
        ("/etc/passwd", SHARD),
        (SHARD, "is a link to itself"),
        (sharded, "is missing or not a file"),
    ):
        (sharded / SHARD).unlink()
        (sharded / SHARD).symlink_to(target)
        assert says in str(refusal(sharded))
    (sharded / SHARD).unlink()
    os.mkfifo(sharded / SHARD)
    assert "is missing or not a file" in refusal(sharded).what


def test_a_shard_that_shrinks_while_it_is_read(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    shard, entry = checkpoint.tensors["model.norm.weight"]
    os.truncate(sharded / shard, entry.end - 1)
    with pytest.raises(StageFailedError, match="was changed while it was in use"):
        checkpoint.read("model.norm.weight")


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", random_model(0))
    (folder / "config.json").write_text("{")
    assert "config.json: not JSON (" in refusal(folder).what
    (folder / "config.json").write_text("[]")
    assert "not a JSON object" in refusal(folder).what


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", random_model(0))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (folder / "model.safetensors").write_text(pointer)
    error = refusal(folder)
    assert "is a Git LFS pointer" in error.what
    assert error.hint == f"Fetch it: git -C {folder} lfs pull"


def test_what_may_not_be_read_is_named(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest_open, honest_scandir = Path.open, os.scandir

    def may_not_open(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == SHARD:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return honest_open(path, *args, **kwargs)

    def may_not_list(path: Any) -> Any:
        if Path(path).name == "hidden_from_us":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return honest_scandir(path)

    monkeypatch.setattr(Path, "open", may_not_open)
    with pytest.raises(MissingEnvironmentError, match=SHARD):
        open_checkpoint(sharded)
    (sharded / "hidden_from_us").mkdir()
    monkeypatch.setattr(os, "scandir", may_not_list)
    with pytest.raises(MissingEnvironmentError, match="hidden_from_us"):
        side_files(sharded)
