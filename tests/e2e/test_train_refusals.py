"""Bad input, bad numbers, bad disks: one clear message, and the last good save intact."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from amnesia_bench.errors import AmnesiaError, MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.tracking.metrics_file import read_metrics
from amnesia_bench.training.batches import Batches, FileOrder
from amnesia_bench.training.inputs import check_documents
from amnesia_bench.weights.checkpoint import open_checkpoint
from tests.support.checkpoints import tensor_bytes
from tests.support.deadly_training import Deadly, run_and_die
from tests.support.training_runs import (
    Started,
    Store,
    TinyJob,
    as_process,
    train_here,
    training_run,
    write_data,
    write_hypenet,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_hypenet(tmp_path / "init")
    return tmp_path


def job(folder: Path, train: dict[str, object] | None = None, **data: object) -> TinyJob:
    if not (folder / "data").exists():
        write_data(folder / "data", **data)  # type: ignore[arg-type]
    return TinyJob(
        run=training_run(train),
        init=folder / "init",
        data={"sft": folder / "data"},
        out=folder / "out",
    )


def saves(folder: Path) -> list[str]:
    found = folder.glob("out.training/checkpoints/*")
    return sorted(path.name for path in found)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def refused(mine: TinyJob, kind: type[AmnesiaError], *said: str) -> None:
    before = visible(mine.out.parent)
    with pytest.raises(kind) as caught:
        train_here(mine)
    for words in said:
        assert words in str(caught.value)
    assert visible(mine.out.parent) == before


def test_data_of_another_tokenizer(folder: Path) -> None:
    refused(
        job(folder, tokenizer_sha256="0" * 64),
        UserError,
        "data sft were prepared with a different tokenizer",
        "Prepare the data with the tokenizer in the --init folder.",
    )


def test_data_of_another_length_or_for_another_stage(folder: Path) -> None:
    mine = job(folder, tokens=16)
    refused(mine, UserError, "data sft have sequences of 16 tokens, the stage needs 32")
    pretraining = replace(
        mine, run=training_run({"sequence_tokens": 16, "isolate_documents": False})
    )
    refused(pretraining, UserError, "prepared with documents isolated; this stage needs them not")


def test_sources_that_are_not_those_of_the_mixture(folder: Path) -> None:
    mine = job(folder, {"mixture": {"fineweb_edu": 0.8, "ultradata_math": 0.2}})
    refused(mine, UserError, "the stage mixes fineweb_edu, ultradata_math; data were given for sft")


def test_data_that_are_not_what_was_prepared(folder: Path) -> None:
    mine = job(folder)
    path = folder / "data/tokens.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    refused(mine, UserError, "was changed since it was prepared", "tokens.npy has other contents")
    path.write_bytes(content + b"more")
    refused(mine, UserError, "tokens.npy has")


def test_processes_that_do_not_divide_the_batch(folder: Path) -> None:
    run = training_run({"global_batch": 3, "micro_batch": 1})
    store = Store(write_data(folder / "data"))
    said = "a global batch of 3 sequences cannot be divided among 2 processes"
    with pytest.raises(UserError, match=said):
        Batches(run, {"sft": store}, FileOrder([store.num_sequences]), 0, 2)


def test_a_teacher_where_none_is_wanted_and_none_where_one_is(folder: Path) -> None:
    mine = job(folder)
    refused(replace(mine, teacher=folder / "init"), UserError, "tiny has no teacher")
    learning = {"objective": "distill", "teacher": "Qwen/Qwen3-1.7B", "isolate_documents": False}
    distill = training_run(learning)
    refused(replace(mine, run=distill), UserError, "learns from a teacher (Qwen/Qwen3-1.7B)")


def test_an_output_that_exists(folder: Path) -> None:
    mine = job(folder)
    mine.out.mkdir()
    refused(mine, UserError, "already exists; nothing was written")


def test_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = job(folder)
    closed = folder / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):  # root may write anywhere: let the system call refuse
        import amnesia_bench.store.files as files

        honest = files.Path.mkdir

        def mkdir(path: Path, *args: object, **kwargs: object) -> None:
            if path.parent == closed:
                raise PermissionError(13, "Permission denied", str(path))
            honest(path, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(files.Path, "mkdir", mkdir)
    refused(replace(mine, out=closed / "out"), MissingEnvironmentError, "no permission")


def test_a_freezing_rule_that_fits_no_layer(folder: Path) -> None:
    freeze = {"roles": ["q", "k"], "layers": [0]}
    refused(
        job(folder, {"freeze": freeze}), UserError, "layer 0, which has no full softmax", "1, 2"
    )


def test_an_untied_head_where_parity_wants_a_tied_one(folder: Path) -> None:
    write_hypenet(folder / "untied", tie_word_embeddings=False)
    mine = job(folder)
    mine = replace(mine, init=folder / "untied", run=training_run({}, {"head": "tied"}))
    refused(mine, UserError, "recipe.head=tied", "amnesia convert --tie-head config")


def test_model_code_that_nobody_vouched_for(folder: Path) -> None:
    config, mine = folder / "init/config.json", job(folder, documents=1)
    config.write_text(config.read_text().replace('"hypenet"', '"no_such_kind"'))
    refused(mine, UserError, "transformers does not support this model type")
    (folder / "init/modeling_own.py").write_text("raise SystemExit('ran')")
    with_code = json.loads(config.read_text()) | {"auto_map": {"AutoModelForCausalLM": "a.B"}}
    config.write_text(json.dumps(with_code))
    refused(
        job(folder, documents=1),
        UserError,
        "contains model code",
        "train.trusted_code_sha256",
    )


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen3_next", {}),
        ("jamba", {}),
        ("nemotron_h", {}),
        ("mixtral", {}),
        ("qwen3_5", {"text_config": {"model_type": "qwen3_5_text", "vocab_size": 97}}),
        ("gpt2", {}),
    ],
)
def test_a_model_that_is_not_trained_here_is_called_that(
    folder: Path, kind: str, changes: dict[str, object]
) -> None:
    path = folder / "init/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": kind} | changes))
    said = f"training models of type {kind} is not supported"
    refused(job(folder), UserError, said, "Supported: arcee, bamba,")


def test_quantised_weights(folder: Path) -> None:
    path = folder / "init/config.json"
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantised))
    refused(
        job(folder), UserError, "training quantised weights is not supported", "remove that key"
    )


def test_tensors_of_other_names_or_shapes_are_named(folder: Path) -> None:
    path = folder / "init/model.safetensors"
    honest, name = load_file(path), "model.layers.1.mlp.up_proj.weight"
    renamed = {("x." + k if k == name else k): v for k, v in honest.items()}
    save_file(renamed, path, metadata={"format": "pt"})
    mine = job(folder)
    said = (f"tensor {name} of a hypenet model is missing", "is not supported")
    refused(mine, UserError, *said)
    save_file(honest | {name: honest[name][:-1].clone()}, path, metadata={"format": "pt"})
    refused(mine, UserError, f"{name} has shape [47, 32], config.json requires [48, 32]")
    config = folder / "init/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": "wide"}))
    refused(mine, UserError, "transformers cannot build a model from its config.json")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "falcon_h1"}, "models of type falcon_h1 cannot isolate packed documents"),
        ({"model_type": "someones_own"}, "models of type someones_own cannot isolate packed doc"),
        ({"rope_scaling": {"type": "su"}}, "with rope_type su packed documents change each oth"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "rope_theta": 1e4}}},
            "with rope_type dynamic packed documents change each other's positions",
        ),
    ],
)
def test_packed_documents_that_the_model_cannot_keep_apart(
    folder: Path, changes: dict[str, object], why: str
) -> None:
    path = folder / "init/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    mine = job(folder)
    refused(mine, UserError, why, "data sft have sequences of several documents", "pack=single")
    single = Store(write_data(folder / "single", documents=1))
    check_documents(mine.run, {"sft": single}, open_checkpoint(folder / "init"))


@pytest.mark.parametrize("rows", [96, 40])
def test_tokens_without_a_row_in_the_embeddings(folder: Path, rows: int) -> None:
    write_hypenet(folder / "init", vocab_size=rows)
    refused(
        job(folder),
        UserError,
        f"has tokens up to 96; the embeddings have {rows} rows",
        "m.resize_token_embeddings(97)",
    )


def test_a_resumed_run_with_other_data_another_start_or_other_settings(folder: Path) -> None:
    mine = job(folder)
    assert run_and_die(mine, Deadly("step", 4), 1)
    write_data(folder / "other", seed=1)
    write_hypenet(folder / "init2", seed=1)
    changes = {
        "data:sft was": {"data": {"sft": folder / "other"}},
        "init was": {"init": folder / "init2"},
        "train.seed was 0, now 1": {"run": training_run({"seed": 1})},
        "recipe.kd_rows was all": {"run": training_run({}, {"kd_rows": "first512"})},
    }
    for said, change in changes.items():
        refused(replace(mine, **change), UserError, said, "another --out to start a new run")  # type: ignore[arg-type]
    assert saves(folder) == ["step-00000003"]
    assert train_here(mine) == 0


def test_a_save_that_was_damaged_is_told_and_the_one_before_it_serves(folder: Path) -> None:
    mine = job(folder)
    assert run_and_die(mine, Deadly("step", 7), 1)
    assert saves(folder) == ["step-00000003", "step-00000006"]
    (path,) = folder.glob("out.training/checkpoints/step-00000006/*.distcp")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"damaged since it was saved: has other contents\nRemove .*step-00000006"
    ):
        train_here(mine)
    path.unlink()
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    assert train_here(mine) == 0


def test_a_sequence_with_nothing_to_train_on(folder: Path) -> None:
    def spoil(_: np.ndarray, mask: np.ndarray) -> None:
        mask[2] = False
        mask[2, 0] = True  # no token stands before it

    mine = job(folder, spoil=spoil)
    mine = replace(mine, run=training_run({}, {"shuffle": False}))
    with pytest.raises(StageFailedError, match="step 1: sequence 2 of sft has no trained token"):
        train_here(mine)
    started = Started(mine, 2)
    assert started.wait() == [4, 4]
    assert started.said.count("sequence 2 of sft has no trained token") == 2


def test_a_loss_that_is_no_number_stops_the_run_at_its_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amnesia_bench.training.objectives import NextToken

    honest, calls = NextToken.forward, 0

    def forward(self: NextToken, batch: object) -> object:
        nonlocal calls
        calls += 1
        loss, rest = honest(self, batch)  # type: ignore[arg-type]
        return (loss * float("nan") if calls == 4 * 4 + 2 else loss), rest

    mine = job(folder)
    with monkeypatch.context() as patch:
        patch.setattr(NextToken, "forward", forward)
        with pytest.raises(StageFailedError, match="step 5: the loss is nan"):
            train_here(mine)
    assert saves(folder) == ["step-00000003"]
    assert train_here(mine) == 0
    whole = replace(mine, out=folder / "whole")
    assert train_here(whole) == 0
    assert tensor_bytes(mine.out) == tensor_bytes(whole.out)


def spoil_gradients(patch: pytest.MonkeyPatch, steps: set[int], fatal: int | None = None) -> None:
    """Make the gradients of these steps infinite, and the loss of one no number."""
    from amnesia_bench.training.loop import Loop

    clip, check = Loop._clip, Loop._is_finite
    calls = 0

    def clip_spoilt(self: Loop, limit: float) -> object:
        nonlocal calls
        calls += 1
        if calls in steps:
            for parameter in self._trained.values():
                assert parameter.grad is not None
                parameter.grad.mul_(float("inf"))
        return clip(self, limit)

    def check_spoilt(self: Loop, step: int, loss: float, grad_norm: float) -> bool:
        return check(self, step, float("nan") if step == fatal else loss, grad_norm)

    patch.setattr(Loop, "_clip", clip_spoilt)
    patch.setattr(Loop, "_is_finite", check_spoilt)


def test_a_gradient_that_is_not_finite_is_left_out_and_resuming_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = job(folder, {"checkpoints": {"every_steps": 5, "keep": 2, "asynchronous": False}})
    whole = replace(mine, out=folder / "whole")
    with monkeypatch.context() as patch:
        spoil_gradients(patch, {4, 5})
        assert train_here(whole) == 0
    lines = read_metrics(whole.out / "metrics.jsonl")
    assert [line["step"] for line in lines if line["grad_norm"] is None] == [4, 5]
    with monkeypatch.context() as patch:
        spoil_gradients(patch, {4, 5}, fatal=7)
        with pytest.raises(StageFailedError, match="step 7: the loss is nan"):
            train_here(mine)
    assert train_here(mine) == 0
    assert tensor_bytes(mine.out) == tensor_bytes(whole.out)
    assert read_metrics(mine.out / "metrics.jsonl") == lines


def test_three_such_gradients_in_a_row_end_the_run_also_across_a_resume(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = job(folder)
    with monkeypatch.context() as patch:
        spoil_gradients(patch, {2, 5, 6, 7})
        with pytest.raises(StageFailedError, match=r"step 7: .*3 in a row"):
            train_here(mine)
    assert saves(folder) == ["step-00000003", "step-00000006"]
    with monkeypatch.context() as patch:
        spoil_gradients(patch, {1})
        with pytest.raises(StageFailedError, match=r"step 7: .*3 in a row"):
            train_here(mine)
    assert train_here(mine) == 0


def test_what_a_kill_after_publishing_left_is_cleared_by_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, left = job(folder, {"steps": 3}), folder / "out.training"
    with monkeypatch.context() as patch:
        patch.setattr("amnesia_bench.training.run.remove_run", lambda _: [])
        assert train_here(mine) == 0
    other = replace(mine, run=training_run({"steps": 4}))
    refused(other, UserError, "already exists")
    assert saves(folder) == ["step-00000003"]
    assert train_here(mine) == 0
    assert "already finished" in capsys.readouterr().err
    assert not left.exists()
    refused(mine, UserError, "already exists")


class FullDisk:
    """The target of a process whose disk is full from the second save on."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __call__(self, job: TinyJob, rank: int, size: int, port: int, log: Path) -> None:
        import amnesia_bench.training.checkpoints as module

        honest, saves = module._Writer, 0

        def writer(*args: object, **kwargs: object) -> object:
            nonlocal saves
            saves += 1
            if saves == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            return honest(*args, **kwargs)  # type: ignore[arg-type]

        module._Writer = writer  # type: ignore[assignment,misc]
        as_process(job, rank, size, port, log)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_disk_that_fills_during_a_save(folder: Path, asynchronous: bool) -> None:
    settings = {"every_steps": 3, "keep": 2, "asynchronous": asynchronous}
    mine = job(folder, {"checkpoints": settings})
    started = Started(mine, 1, FullDisk("save"))
    assert started.wait() == [4]
    assert "no space left while writing" in started.said, started.said
    assert "earlier checkpoints are kept" in started.said
    assert saves(folder) == ["step-00000003"]
    assert train_here(mine) == 0


def full_at_the_export(job: TinyJob, rank: int, size: int, port: int, log: Path) -> None:
    """Be a process whose disk is full when the result is written."""
    import amnesia_bench.training.export as module

    honest = module.ShardWriter.close

    def close(self: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        honest(self)

    module.ShardWriter.close = close  # type: ignore[method-assign]
    as_process(job, rank, size, port, log)


def test_a_disk_that_fills_at_the_export(folder: Path) -> None:
    mine = job(folder)
    whole = replace(mine, out=folder / "whole")
    assert train_here(whole) == 0
    started = Started(mine, 1, full_at_the_export)
    assert started.wait() == [4], started.said
    assert "no space left while writing" in started.said, started.said
    assert "complete checkpoints are kept" in started.said
    assert "Traceback" not in started.said
    assert not mine.out.exists()
    assert list(folder.glob(".out*")) == []
    assert train_here(mine) == 0
    assert tensor_bytes(mine.out) == tensor_bytes(whole.out)


@pytest.mark.parametrize(("size", "number"), [(1, signal.SIGUSR1), (2, signal.SIGTERM)])
def test_a_signal_saves_and_asks_to_be_started_again(
    folder: Path, size: int, number: signal.Signals
) -> None:
    every = {"every_steps": 10_000, "keep": 2, "asynchronous": False}
    endless = job(folder, {"steps": 5_000, "checkpoints": every})
    started = Started(endless, size)
    metrics = folder / "out.training/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline, started.said
        time.sleep(0.02)
    pid = started.processes[-1].pid
    assert pid is not None
    os.kill(pid, number)  # of one process; all of them stop at the same step
    assert started.wait(30) == [75] * size, started.said
    (save,) = saves(folder)
    steps = len(metrics.read_text().splitlines())
    assert save == f"step-{steps:08d}"
    assert not endless.out.exists()


def test_a_second_run_to_the_same_place_is_busy(folder: Path) -> None:
    mine = job(folder, {"steps": 5_000})
    started = Started(mine)
    metrics = folder / "out.training/metrics.jsonl"
    while not metrics.exists():
        time.sleep(0.02)
    second = Started(replace(mine))
    assert second.wait() == [5]
    assert "BusyError" in second.said
    started.kill()
