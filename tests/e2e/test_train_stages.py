"""Each stage from a checkpoint folder to a checkpoint folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import amnesia_bench as ab
from amnesia_bench.errors import UserError
from amnesia_bench.modeling import HypeNetForCausalLM
from amnesia_bench.requests.checkpoints import ConvertRequest
from amnesia_bench.store.hashing import verify_manifest
from amnesia_bench.tracking.metrics_file import read_metrics
from tests.support.node_training import OnNodes
from tests.support.training_runs import (
    TINY,
    TOKENIZER,
    Shuffled,
    Started,
    Store,
    TinyJob,
    as_process,
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
        student = ab.load_hypenet(folder / "student.json")
        request = ConvertRequest(teacher=teacher, model=student, stage=stage)
        ab.convert(request, folder / f"converted{stage}")
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


def test_a_tied_head_that_was_stored_twice_is_not_published_stale(folder: Path) -> None:
    weights = tensors(write_hypenet(folder / "twice"))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "twice/model.safetensors", metadata={"format": "pt"})
    assert train_here(job(folder, "once", {"steps": 3}, init="twice")) == 0
    assert weights.keys() - tensors(folder / "once").keys() == {"lm_head.weight"}
    HypeNetForCausalLM.from_pretrained(folder / "once")


@pytest.mark.parametrize(
    ("tied", "changes"),
    [
        (True, {"activation_checkpointing": "full", "loss_chunk_rows": 3}),
        (False, {"activation_checkpointing": "full", "micro_batch": 4}),
    ],
)
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
from amnesia_bench.errors import AmnesiaError
from tests.support.training_runs import TinyJob, train_here, training_run
folder, out = Path(sys.argv[1]), sys.argv[2]
job = TinyJob(run=training_run({"steps": 6, "global_batch": 4}), init=folder / "init",
              data={"sft": folder / "data"}, out=folder / out)
try:
    sys.exit(train_here(job))
except AmnesiaError as error:  # as the command line does
    sys.exit(int(error.exit_code))
"""


def assert_same_training(one: Path, two: Path) -> None:
    lines = [read_metrics(out / "metrics.jsonl") for out in (one, two)]
    for a, b in zip(*lines, strict=True):
        for key in ("batch_checksum", "trained_tokens", "tokens", "documents"):
            assert a[key] == b[key]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)


def test_two_processes_that_accumulate_twice_equal_one_that_does_not(folder: Path) -> None:
    whole = {"steps": 6, "global_batch": 4, "micro_batch": 4}
    assert train_here(job(folder, "one", whole)) == 0
    started = Started(job(folder, "two", whole | {"micro_batch": 1}), 2)
    assert started.wait() == [0, 0], started.said
    assert_same_training(folder / "one", folder / "two")
    counts = [line["trained_tokens"] for line in read_metrics(folder / "one/metrics.jsonl")]
    assert max(counts) > 2 * min(counts)


class OnlyFirstLoads:
    """The target of a process that may read no weights unless it is the first."""

    def __call__(self, job: TinyJob, rank: int, size: int, port: int, log: Path) -> None:
        import amnesia_bench.training.models as module

        if rank:
            module.AutoModelForCausalLM.from_pretrained = None  # type: ignore[method-assign]
        as_process(job, rank, size, port, log)


def test_the_first_process_alone_reads_the_weights_of_student_and_teacher(folder: Path) -> None:
    paths = {"init": "converted2", "teacher": "teacher", "data": "web"}
    distill = DISTILL | {"steps": 3}
    assert train_here(job(folder, "read1", distill, **paths)) == 0
    started = Started(job(folder, "read2", distill, **paths), 2, OnlyFirstLoads())
    assert started.wait() == [0, 0], started.said
    assert_same_training(folder / "read1", folder / "read2")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "init"), [(ALIGN, "converted1"), (DISTILL, "converted2")])
def test_stages_with_a_teacher_on_two_nodes_equal_one_process(
    folder: Path, stage: dict[str, object], init: str
) -> None:
    paths = {"init": init, "teacher": "teacher", "data": "web"}
    train = stage | {"steps": 3, "global_batch": 8}
    assert train_here(job(folder, f"one_{init}", train, **paths)) == 0
    started = Started(job(folder, f"nodes_{init}", train, **paths), 4, OnNodes(2, 2))
    assert started.wait() == [0] * 4, started.said
    assert_same_training(folder / f"one_{init}", folder / f"nodes_{init}")


TORCHRUN = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]


def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"}


@pytest.mark.slow
def test_the_same_under_torchrun(folder: Path) -> None:
    script = folder / "one.py"
    script.write_text(ONE_PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", *TORCHRUN, str(script), str(folder)]
    done = subprocess.run(
        [*command, "torchrun"], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    whole = {"steps": 6, "global_batch": 4, "micro_batch": 4}
    assert train_here(job(folder, "alone", whole)) == 0
    assert_same_training(folder / "alone", folder / "torchrun")


@pytest.mark.slow
def test_launch_ends_with_what_the_workers_say(folder: Path) -> None:
    script = folder / "launched.py"
    script.write_text(ONE_PROCESS.replace('"steps": 6', '"steps": 5000, "seed": 1'))
    command = [sys.executable, "-m", "amnesia_bench.training.launch", *TORCHRUN, str(script)]
    with (folder / "launched.log").open("w") as log:
        started = subprocess.Popen(
            [*command, str(folder), "launched"], env=environment(), stdout=log, stderr=log
        )
    metrics = folder / "launched.training/metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.stat().st_size):
        assert started.poll() is None, (folder / "launched.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started.send_signal(signal.SIGUSR1)
    assert started.wait(60) == 75, (folder / "launched.log").read_text()
    steps = len(metrics.read_text().splitlines())
    saves = sorted(path.name for path in (folder / "launched.training/checkpoints").iterdir())
    assert saves[-1] == f"step-{steps:08d}"
    script.write_text(ONE_PROCESS.replace('"steps": 6', '"steps": 6, "mixture": {"other": 1.0}'))
    done = subprocess.run([*command, str(folder), "wrong"], env=environment(), check=False)
    assert done.returncode == 2


def write_transformer(folder: Path, kind: str, **changes: object) -> Path:
    """A random model of softmax layers only."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "max_position_embeddings")  # fmt: skip
    config = AutoConfig.for_model(kind, **({key: TINY[key] for key in keys} | changes))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    return folder


@pytest.mark.parametrize("kind", ["qwen2", "mistral"])
def test_models_of_softmax_layers_only_are_tuned_and_frozen_by_layer(
    folder: Path, kind: str
) -> None:
    write_transformer(folder / kind, kind)
    freeze = {"roles": ["q", "k"], "layers": [0, 3]}
    assert train_here(job(folder, f"sft_{kind}", {"freeze": freeze}, init=kind)) == 0
    before, after = tensors(folder / kind), tensors(folder / f"sft_{kind}")
    untouched = before.keys() - changed(before, after)
    kept = ("weight", "bias") if kind == "qwen2" else ("weight",)
    assert untouched == {
        f"model.layers.{i}.self_attn.{p}_proj.{what}" for i in (0, 3) for p in "qk" for what in kept
    }
    metrics = read_metrics(folder / f"sft_{kind}/metrics.jsonl")
    assert metrics[-1]["loss"] < metrics[0]["loss"]


SCALED = {
    "granite": {"logits_scaling": 8.0},
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8},
    "phi": {},
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("size", [1, 2])
def test_models_that_scale_or_cap_logits_are_trained_on_their_own_loss(
    folder: Path, kind: str, size: int
) -> None:
    from transformers import AutoModelForCausalLM

    name = f"{kind}{size}"
    init = write_transformer(folder / name, kind, **SCALED[kind])
    out = f"sft_{name}"
    train = {"isolate_documents": False, "steps": 3, "global_batch": 2, "micro_batch": 1}
    mine = job(folder, out, train, init=name, data="web")
    started = Started(mine, size)
    assert started.wait() == [0] * size, started.said
    model = AutoModelForCausalLM.from_pretrained(init)
    store, order = Store(folder / "web"), Shuffled([Store(folder / "web").num_sequences], 0)
    total, count = 0.0, 0
    for index in range(2):
        row = store.sequence(order.sample(index)[1])
        tokens = torch.tensor(row.tokens.astype("int64"))[None]
        labels = torch.where(torch.tensor(row.loss_mask)[None], tokens, -100)
        trained = int((labels[0, 1:] != -100).sum())
        total += model(tokens, labels=labels).loss.item() * trained
        count += trained
    metrics = read_metrics(folder / out / "metrics.jsonl")
    assert metrics[0]["trained_tokens"] == count
    assert metrics[0]["loss"] == pytest.approx(total / count, rel=1e-5)
    again = AutoModelForCausalLM.from_pretrained(folder / out)
    assert type(again) is type(model)
    assert tensors(folder / out).keys() == tensors(init).keys()


OWN_CODE = """
from transformers import Qwen2Config, Qwen2ForCausalLM
class OwnConfig(Qwen2Config):
    model_type = "own_kind"
class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


def test_a_checkpoint_with_code_of_its_own_is_tuned_once_its_hash_is_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    init = write_transformer(folder / "own", "qwen2")
    (init / "modeling_own.py").write_text(OWN_CODE)
    config = json.loads((init / "config.json").read_text())
    classes = {"AutoConfig": "modeling_own.OwnConfig",
               "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}  # fmt: skip
    changes = {"model_type": "own_kind", "architectures": ["OwnForCausalLM"], "auto_map": classes}
    (init / "config.json").write_text(json.dumps(config | changes))
    train = {"isolate_documents": False, "steps": 3}
    with pytest.raises(UserError, match="contains model code") as caught:
        train_here(job(folder, "sft_own", train, init="own", data="web"))
    found = re.search("[0-9a-f]{64}", caught.value.what)
    assert found is not None
    trusted = train | {"trusted_code_sha256": found[0]}
    assert train_here(job(folder, "sft_own", trusted, init="own", data="web")) == 0
    assert (folder / "sft_own/modeling_own.py").read_text() == OWN_CODE
    code = (
        OWN_CODE
        + """
    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits * 2
        return output
"""
    )
    (init / "modeling_own.py").write_text(code)
    with pytest.raises(UserError, match="contains model code") as caught:
        train_here(job(folder, "sft_other", trusted, init="own", data="web"))
    found = re.search("[0-9a-f]{64}", caught.value.what)
    assert found is not None
    trusted["trusted_code_sha256"] = found[0]
    with pytest.raises(UserError, match=r"own_kind model: its own logits are not 1 \(W h"):
        train_here(job(folder, "sft_other", trusted, init="own", data="web"))
    assert list(folder.glob("sft_other*")) == []
