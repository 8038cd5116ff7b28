"""Each stage from a checkpoint folder to a checkpoint folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from amnesia_bench.conversion import Conversion, convert
from amnesia_bench.modeling import HypeNetForCausalLM
from amnesia_bench.store.hashing import verify_manifest
from amnesia_bench.tracking.metrics_file import read_metrics
from tests.training_runs import (
    TINY,
    TinyJob,
    train_here,
    training_run,
    write_data,
    write_hypenet,
    write_teacher,
)

SFT = {"sft": "data"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    write_hypenet(folder / "init")
    write_data(folder / "data")
    write_data(folder / "web", isolate=False)
    teacher = write_teacher(folder / "teacher")
    (folder / "student.json").write_text(json.dumps(TINY))
    for stage in (1, 2):
        convert(
            Conversion(teacher=teacher, size_or_config=folder / "student.json", stage=stage),
            folder / f"converted{stage}",
        )
    return folder


def job(folder: Path, out: str, train: dict[str, object], **paths: str) -> TinyJob:
    chosen = {"init": "init", "data": "data"} | paths
    return TinyJob(
        run=training_run(train),
        init=folder / chosen["init"],
        teacher=folder / chosen["teacher"] if "teacher" in chosen else None,
        data={"sft": folder / chosen["data"]},
        out=folder / out,
    )


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


STAGE1 = {"init": "converted1", "teacher": "teacher", "data": "web"}
WEB = {"isolate_documents": False}
ALIGN = WEB | {"objective": "align", "teacher": "Qwen3-tiny"}
DISTILL = WEB | {"objective": "distill", "teacher": "Qwen3-tiny"}


def test_sft_learns_and_publishes_what_verify_and_transformers_accept(folder: Path) -> None:
    assert train_here(job(folder, "sft", {"steps": 12})) == 0
    out = folder / "sft"
    assert verify_manifest(out) == []
    metrics = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 13))
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kind"] == "trained"
    assert [p["role"] for p in manifest["parents"]] == ["init", "data:sft"]
    assert (out / "tokenizer.json").read_bytes() == (folder / "init/tokenizer.json").read_bytes()
    assert not (folder / "sft.training").exists()
    model = HypeNetForCausalLM.from_pretrained(out)
    before, after = tensors(folder / "init"), tensors(out)
    assert changed(before, after) == before.keys()
    assert torch.equal(model.lm_head.weight, after["model.embed_tokens.weight"])
    assert "lm_head.weight" not in after


def test_alignment_trains_the_mixers_alone_and_leaves_the_teacher_untouched(folder: Path) -> None:
    files = [path.read_bytes() for path in sorted((folder / "teacher").iterdir())]
    assert (
        train_here(job(folder, "s1", ALIGN, init="converted1", teacher="teacher", data="web")) == 0
    )
    before, after = tensors(folder / "converted1"), tensors(folder / "s1")
    assert changed(before, after) == {name for name in before if ".self_attn." in name}
    assert [path.read_bytes() for path in sorted((folder / "teacher").iterdir())] == files
    metrics = read_metrics(folder / "s1/metrics.jsonl")
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    layers = [metrics[0][f"mse_layer_{i}"] for i in range(4)]
    assert metrics[0]["loss"] == pytest.approx(sum(layers) / 4)
    assert metrics[0]["trained_tokens"] == metrics[0]["tokens"]


def test_alignment_can_leave_layers_out(folder: Path) -> None:
    train = ALIGN | {"align_layers": [0, 3]}
    assert (
        train_here(job(folder, "s1b", train, init="converted1", teacher="teacher", data="web")) == 0
    )
    moved = changed(tensors(folder / "converted1"), tensors(folder / "s1b"))
    assert {name.split(".")[2] for name in moved} == {"0", "3"}


def test_distillation_comes_closer_to_the_teacher_which_no_save_holds(folder: Path) -> None:
    mine = job(folder, "s2", DISTILL | {"steps": 12}, init="converted2", teacher="teacher",
               data="web")  # fmt: skip
    assert train_here(mine) == 0
    metrics = read_metrics(folder / "s2/metrics.jsonl")
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    before, after = tensors(folder / "converted2"), tensors(folder / "s2")
    assert changed(before, after) == before.keys()
    manifest = json.loads((folder / "s2/manifest.json").read_text())
    assert [p["role"] for p in manifest["parents"]] == ["init", "teacher", "data:sft"]


def test_frozen_tensors_keep_every_bit_and_all_others_move(folder: Path) -> None:
    freeze = {"roles": ["q", "k"], "layers": "all"}
    assert train_here(job(folder, "frozen", {"freeze": freeze})) == 0
    before, after = tensors(folder / "init"), tensors(folder / "frozen")
    names = {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (1, 2) for p in "qk"}
    assert before.keys() - changed(before, after) == names


def test_norms_and_single_layers_can_be_frozen_too(folder: Path) -> None:
    freeze = {"roles": ["q", "q_norm"], "layers": [2]}
    assert train_here(job(folder, "frozen2", {"freeze": freeze, "steps": 4})) == 0
    before, after = tensors(folder / "init"), tensors(folder / "frozen2")
    names = {f"model.layers.2.self_attn.{name}.weight" for name in ("q_proj", "q_norm")}
    assert before.keys() - changed(before, after) == names


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("changes", [{"activation_checkpointing": True}, {"micro_batch": 4},
                                     {"loss_chunk_rows": 3}])  # fmt: skip
def test_what_saves_memory_changes_no_result(
    folder: Path, tied: bool, changes: dict[str, object]
) -> None:
    init = f"init_{tied}"
    if not (folder / init).exists():
        write_hypenet(folder / init, tie_word_embeddings=tied)
    name = "_".join(changes) + str(tied)
    runs = {f"plain_{name}": {}, name: changes}
    for out, change in runs.items():
        assert train_here(job(folder, out, {"steps": 4} | change, init=init)) == 0
    plain, other = (read_metrics(folder / out / "metrics.jsonl") for out in runs)
    for a, b in zip(plain, other, strict=True):
        assert a["batch_checksum"] == b["batch_checksum"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_the_dtype_of_a_checkpoint_is_kept_and_masters_are_float32(folder: Path) -> None:
    model = HypeNetForCausalLM.from_pretrained(folder / "init").bfloat16()
    model.save_pretrained(folder / "init16")
    (folder / "init16/tokenizer.json").write_bytes((folder / "init/tokenizer.json").read_bytes())
    small = {"steps": 6, "optimizer": {"learning_rate": 1e-5, "min_learning_rate": 1e-5}}
    moved = {}
    for master in ("fp32", "bf16"):
        mine = job(folder, f"out16{master}", {}, init="init16")
        run = training_run(small | {"compute_dtype": "bf16"}, {"master_dtype": master})
        assert train_here(TinyJob(**(vars(mine) | {"run": run}))) == 0
        after = tensors(mine.out)
        assert {x.dtype for x in after.values()} == {torch.bfloat16}
        before = tensors(folder / "init16")
        moved[master] = sum(int((before[n] != after[n]).sum()) for n in before)
    # Five updates of 1e-5 are below half an ulp of most weights: only masters add them up.
    assert moved["bf16"] < moved["fp32"]


ONE_PROCESS = """
import sys
from pathlib import Path
from tests.training_runs import TinyJob, train_here, training_run
folder, out = Path(sys.argv[1]), sys.argv[2]
job = TinyJob(run=training_run({"steps": 6, "global_batch": 4}), init=folder / "init",
              data={"sft": folder / "data"}, out=folder / out)
sys.exit(train_here(job))
"""


def test_two_processes_with_torchrun_and_accumulation_equal_one(folder: Path) -> None:
    script = folder / "one.py"
    script.write_text(ONE_PROCESS)
    root = str(Path(__file__).resolve().parents[2])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
                "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]  # fmt: skip
    environment = {**os.environ}
    environment["PYTHONPATH"] = f"{root}:{root}/src"
    command = [*torchrun, str(script), str(folder), "two"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one = job(folder, "one", {"steps": 6, "global_batch": 4, "micro_batch": 4})
    assert train_here(one) == 0
    lines = [read_metrics(folder / out / "metrics.jsonl") for out in ("one", "two")]
    counts = [line["trained_tokens"] for line in lines[0]]
    assert max(counts) > 2 * min(counts)
    for a, b in zip(*lines, strict=True):
        for key in ("batch_checksum", "trained_tokens", "tokens", "documents"):
            assert a[key] == b[key]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
