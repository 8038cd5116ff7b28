"""What of a folder is the model, and what a run left there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.weights.side_files import left_out, side_files
from tests.support.checkpoints import random_model, save

MODEL = (
    "added_tokens.json",
    "additional_chat_templates/tools.jinja",
    "chat_template.jinja",
    "configuration_x.py",
    "generation_config.json",
    "layers/block.py",
    "merges.txt",
    "modeling_x.py",
    "optimizer.py",
    "preprocessor_config.json",
    "qwen.tiktoken",
    "README.md",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.bpe",
)
RUN = (
    ".git/HEAD",
    "__pycache__/x.pyc",
    "adapter_config.json",
    "adapter_model.safetensors",
    "all_results.json",
    "checkpoint-100/config.json",
    "checkpoint-100/model.safetensors",
    "checkpoint-100/pytorch_model_fsdp_0/__0_0.distcp",
    "checkpoint-best/config.json",
    "consolidated.safetensors",
    "epoch_1/tokenizer.json",
    "events.out.tfevents.1.host",
    "final_merged/config.json",
    "final_merged/model.safetensors",
    "final_merged/sub/merges.txt",
    "global_step100/zero.pt",
    "iter_0000100/x.txt",
    "latest",
    "logs/a.txt",
    "model.gguf",
    "model.gguf.part",
    "model.litertlm",
    "model.pdparams",
    "model.safetensors.bak",
    "model.tflite",
    "onnx/model.onnx",
    "onnx/model.onnx_data",
    "onnx/model_fp16.onnx_data_1",
    "optimizer.pt",
    "optimizer_0/x.distcp",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "rust_model.ot",
    "rng_state_0.pth",
    "runs/Nov29/events.out.tfevents.1",
    "scheduler.pt",
    "train.log",
    "trainer_log.jsonl",
    "trainer_state.json",
    "training_args.bin",
    "training_args.yaml",
    "training_loss.png",
    "wandb/run-1/run-1.wandb",
    "zero_to_fp32.py",
)


def test_a_run_is_left_behind_and_a_model_is_not(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", random_model(0), shards=2)
    for name in (*MODEL, *RUN):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("12345")
    found = {str(path) for path in side_files(folder)}
    assert found == {*MODEL, "config.json", "tokenizer.json"}
    shards = [path.name for path in folder.glob("model-*")]
    others = left_out(folder, [*found, *shards, "model.safetensors.index.json"])
    assert others.files == len(RUN)
    assert others.bytes == 5 * len(RUN)
    assert {"checkpoint-100/", "final_merged/", "optimizer.pt", "wandb/"} <= set(others.names)
    assert others.described().startswith(".git/, ")
    assert f"({len(RUN)} files, 0.0 MB), which are not part of the model." in others.described()


def snapshot(tmp_path: Path) -> Path:
    """The hub's cache: a folder of links to blobs."""
    plain = save(tmp_path / "plain", random_model(0))
    cached = tmp_path / "models--a--b" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (cached.parent.parent / "blobs").mkdir()
    for file in plain.iterdir():
        file.rename(cached.parent.parent / "blobs" / file.name)
        (cached / file.name).symlink_to(f"../../blobs/{file.name}")
    return cached


def test_links_into_the_blobs_of_the_cache_are_side_files(tmp_path: Path) -> None:
    cached = snapshot(tmp_path)
    assert [str(path) for path in side_files(cached)] == ["config.json", "tokenizer.json"]
    (tmp_path / "by_name").symlink_to(cached)
    assert len(side_files(tmp_path / "by_name")) == 2
    (cached / "sub").mkdir()  # of a repository with a model in a folder
    (cached / "sub" / "config.json").symlink_to("../../../blobs/config.json")
    assert [str(path) for path in side_files(cached / "sub")] == ["config.json"]


@pytest.mark.parametrize("in_cache", [False, True])
def test_links_that_lead_elsewhere_are_refused(tmp_path: Path, in_cache: bool) -> None:
    folder = snapshot(tmp_path) if in_cache else save(tmp_path / "c", random_model(0))
    (tmp_path / "id_rsa").write_text("secret")
    (folder / "vocab.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(UserError, match="outside the checkpoint folder"):
        side_files(folder)
    (folder / "vocab.txt").unlink()
    os.mkfifo(folder / "vocab.txt")
    with pytest.raises(UserError, match="neither a regular file nor a link"):
        side_files(folder)


@pytest.mark.parametrize("target", ["inside", "../outside", "link"])
def test_links_to_folders_are_refused_and_never_dropped(target: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "c", random_model(0))
    for name in ("c/inside", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "merges.txt").write_text("x")
    (folder / "link").symlink_to(target)  # the last one leads to itself
    with pytest.raises(UserError, match="link"):
        side_files(folder)


def test_a_link_to_the_last_step_of_the_run_is_part_of_the_run(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", random_model(0))
    save(folder / "checkpoint-500", random_model(0))
    (folder / "last").symlink_to("checkpoint-500")
    assert [str(path) for path in side_files(folder)] == ["config.json", "tokenizer.json"]
    assert "last" in left_out(folder, ["config.json"]).names


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", random_model(0))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_text("x")
    with pytest.raises(UserError, match=r"udcff\.txt"):
        side_files(folder)


def test_a_run_that_removes_its_steps_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "c", random_model(0))
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.pt").write_text("x")
    honest = os.scandir

    def vanishing(path: str) -> object:
        if Path(path).name == "checkpoint-1":
            raise FileNotFoundError(2, "No such file or directory", path)
        return honest(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert "config.json" in map(str, side_files(folder))
    assert left_out(folder, ["config.json", "tokenizer.json", "model.safetensors"]).files == 0
