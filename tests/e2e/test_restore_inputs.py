"""What users have in hand: snapshots of the hub's cache, and folders that a training run left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.surgery import restoration as restoration_module
from tests.support.checkpoints import drifted, random_model, save, tensor_bytes
from tests.support.surgery import diff, restore, verify

Q1 = "model.layers.1.self_attn.q_proj.weight"


def cached(folder: Path) -> Path:
    """Turn a folder into a snapshot of the hub's cache, as its client lays it out."""
    repository = folder.parent / f"models--org--{folder.name}"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    for path in (snapshot, blobs):
        path.mkdir(parents=True)
    for file in folder.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    return snapshot


@pytest.fixture
def pre(tmp_path: Path) -> Path:
    return save(tmp_path / "pre", random_model(0), shards=2)


@pytest.fixture
def post(tmp_path: Path) -> Path:
    return save(tmp_path / "post", drifted(random_model(0), 1), shards=2)


def test_snapshots_of_the_cache_on_both_sides(pre: Path, post: Path, tmp_path: Path) -> None:
    restore(pre, post, tmp_path / "expected")
    pre, post = cached(pre), cached(post)
    out = tmp_path / "out"
    assert diff(pre, post).different
    assert restore(pre, post, None).out is None
    record = restore(pre, post, out)
    assert record.left_out == ()
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    for repository in tmp_path.glob("models--*"):  # huggingface-cli delete-cache
        shutil.rmtree(repository)
    assert tensor_bytes(out) == tensor_bytes(tmp_path / "expected")
    for name in ("config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert not verify(out).findings


def test_the_folder_of_a_training_run_gives_a_model_only(
    pre: Path, post: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {path.name for path in post.iterdir()}
    for step in (100, 200):
        shutil.copytree(post, post / f"checkpoint-{step}", ignore=shutil.ignore_patterns("check*"))
        for part in ("pytorch_model_fsdp_0", "optimizer_0"):
            (post / f"checkpoint-{step}" / part).mkdir()
            (post / f"checkpoint-{step}" / part / "__0_0.distcp").write_bytes(b"0" * 1_000_000)
    for name in ("runs/Nov29/events.out.tfevents.1", "wandb/run-1/run-1.wandb", "optimizer.pt"):
        (post / name).parent.mkdir(parents=True, exist_ok=True)
        (post / name).write_bytes(b"0")
    out = tmp_path / "out"
    assert main(["restore", "--pre", str(pre), "--post", str(post), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        *names,
        "manifest.json",
        "restoration.json",
        "README.md",
    }
    files = 2 * (len(names) + 2) + 3
    assert (
        "Not copied from post: checkpoint-100/, checkpoint-200/, optimizer.pt, runs/, wandb/ "
        f"({files} files, 4.1 MB), which are not part of the model."
    ) in " ".join(capsys.readouterr().err.split())


def test_an_adapter_beside_merged_weights_is_left_behind(
    pre: Path, post: Path, tmp_path: Path
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (post / name).write_text("{}")
    record = restore(pre, post, tmp_path / "out")
    assert not list((tmp_path / "out").glob("adapter*"))  # transformers would load its base
    assert [said for said in record.warnings if "assumed to be merged already" in said]


def test_an_adapter_beside_weights_without_it_is_named(pre: Path, tmp_path: Path) -> None:
    post = shutil.copytree(pre, tmp_path / "both")
    (post / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(UserError, match="Nothing to do") as refused:
        restore(pre, post, tmp_path / "out")
    assert refused.value.hint is not None
    assert "Its adapter is not merged into its weights" in refused.value.hint
    assert "merge_and_unload" in refused.value.hint


def test_the_space_check_counts_what_is_copied(
    pre: Path, post: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (post / "vocab.bpe").write_bytes(b"0" * 3_000_000)
    (post / "checkpoint-1").mkdir()
    (post / "checkpoint-1" / "optimizer.pt").write_bytes(b"0" * 9_000_000)
    usage = type("Usage", (), {"free": 2_900_000})
    monkeypatch.setattr(restoration_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StageFailedError, match=r"3,\d\d\d,\d\d\d bytes are needed"):
        restore(pre, post, tmp_path / "out")
    usage.free = 3_500_000
    restore(pre, post, tmp_path / "out")
