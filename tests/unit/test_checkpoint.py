"""A folder is opened only when every reader of it would see the same weights."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.weights.checkpoint import open_checkpoint, side_files
from tests.checkpoints import random_model, save, tensor_bytes, write_index, write_safetensors

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
    assert "is not the name of a file beside it" in refusal(sharded).what


def test_an_index_that_disagrees_with_its_shards(sharded: Path) -> None:
    names = weight_map(sharded)
    write_index(sharded, names | {"model.norm.weight": SHARD})
    assert "maps 'model.norm.weight'" in refusal(sharded).what
    write_index(sharded, names | {"invented": SHARD})
    assert "no shard holds it" in refusal(sharded).what
    del names["model.norm.weight"]
    write_index(sharded, names)
    assert "does not list 'model.norm.weight'" in refusal(sharded).what


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    model = random_model(0)
    first = [name for name, shard in weight_map(sharded).items() if shard == SHARD]
    write_safetensors(sharded / SHARD, model, [*first, "model.norm.weight"], "BF16")
    assert "'model.norm.weight' lies in both" in refusal(sharded).what


def test_a_single_file_beside_an_index_that_does_not_name_it(sharded: Path) -> None:
    write_safetensors(sharded / "model.safetensors", random_model(0), ["model.norm.weight"], "F32")
    assert "holds both" in refusal(sharded).what


def test_links_out_of_the_folder(tmp_path: Path, sharded: Path) -> None:
    outside = tmp_path / "blob"
    (sharded / SHARD).rename(outside)
    (sharded / SHARD).symlink_to(outside)
    error = refusal(sharded)
    assert "leads out of the checkpoint folder" in error.what
    assert error.hint is not None
    assert "cp -rL" in error.hint


def test_a_shard_that_shrinks_while_it_is_read(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    shard, entry = checkpoint.tensors["model.norm.weight"]
    os.truncate(sharded / shard, entry.end - 1)
    with pytest.raises(StageFailedError, match="was changed while it was in use"):
        checkpoint.read("model.norm.weight")


def test_links_inside_the_folder_are_followed(sharded: Path) -> None:
    (sharded / SHARD).rename(sharded / "blob")
    (sharded / SHARD).symlink_to("blob")
    assert open_checkpoint(sharded).read("model.norm.weight")


def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", random_model(0))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = refusal(folder)
    assert "pytorch_model.bin" in error.what
    assert error.hint is not None
    assert f"from_pretrained('{folder}').save_pretrained(" in error.hint


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "org" / "name").what
    assert "config.json" in refusal(tmp_path).what
    folder = save(tmp_path / "c", random_model(0))
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in refusal(folder).what
    (folder / "config.json").write_text("[]")
    assert "not a JSON object" in refusal(folder).what
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert "LoRA" in str(refusal(folder))


def test_side_files_are_everything_but_weights_and_caches(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", random_model(0), shards=2)
    for name in (
        "modeling_x.py",
        "consolidated.safetensors",
        "optimizer.pt",
        ".cache/x",
        "a/b.txt",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    assert [str(path) for path in side_files(folder)] == [
        "a/b.txt",
        "config.json",
        "modeling_x.py",
        "tokenizer.json",
    ]


@pytest.mark.parametrize("target", ["inside", "../outside", "link"])
def test_links_to_folders_are_refused_and_never_dropped(target: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "c", random_model(0))
    for name in ("c/inside", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "merges.txt").write_text("x")
    (folder / "link").symlink_to(target)  # the last one leads to itself
    with pytest.raises(UserError, match="link"):
        side_files(folder)


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", random_model(0))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_text("x")
    with pytest.raises(UserError, match=r"udcff\.txt"):
        side_files(folder)


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
    with pytest.raises(PermissionError):
        side_files(sharded)
