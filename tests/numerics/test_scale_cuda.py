"""What runs at scale, together: bfloat16, recomputation, compiled blocks, packed rows, resumes.

Each test runs on a GPU at a size that takes the same kernels as a full-scale run, and on a CPU at a
small size, which proves that the test itself works.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from amnesia_bench.costs.estimate import estimate_training
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.costs.model_shape import read_model_shape
from amnesia_bench.errors import StoppedError
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.tracking.metrics_file import read_metrics
from amnesia_bench.training import processes
from tests.support import training_runs
from tests.support.tiny_models import needle_prompts, requests_of, tiny_model, tiny_tokenizer
from tests.support.training_runs import (
    TINY,
    TinyJob,
    train_here,
    training_run,
    write_data,
    write_hypenet,
)


@dataclass(frozen=True)
class Scale:
    """A device, tokens per packed row, tokens per prompt, and whether blocks are compiled."""

    device: str
    row_tokens: int
    prompt_tokens: int
    compiled: bool


ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
]
SCALES = [
    pytest.param(Scale("cpu", 160, 300, compiled=False), id="cpu"),
    pytest.param(Scale("cpu", 160, 300, compiled=True), id="cpu-compiled", marks=pytest.mark.slow),
    pytest.param(Scale("cuda", 8192, 2000, compiled=True), id="cuda", marks=ON_GPU),
]
EAGER_SCALES = [SCALES[0], SCALES[2]]
# Documents of 4,096 tokens and more take the chunk kernel; heads of 64 are those of a real model.
SHAPE = {"head_dim": 64, "lightning_nkv": 4, "vocab_size": training_runs.VOCAB}


def _job(scale: Scale, folder: Path, **train: Any) -> TinyJob:
    values = {
        "steps": 4,
        "sequence_tokens": scale.row_tokens,
        "compute_dtype": "bf16",
        "activation_checkpointing": "full",
        "compile": scale.compiled,
        "loss_chunk_rows": 512,
        "checkpoints": {"every_steps": 2, "keep": 2, "asynchronous": True},
    }
    folder.mkdir()
    return TinyJob(
        run=training_run(values | train),
        init=write_hypenet(folder / "init", **SHAPE),
        data={"sft": write_data(folder / "data", tokens=scale.row_tokens, rows=8, documents=2)},
        out=folder / "out",
    )


def _metrics(job: TinyJob) -> list[dict[str, Any]]:
    return read_metrics(job.out / "metrics.jsonl")


@pytest.mark.parametrize("scale", SCALES)
def test_a_run_with_everything_trains_as_plain_float32_on_a_cpu_does(
    scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(scale, tmp_path / "full")
    assert train_here(job) == 0
    plain = training_run(
        job.run.train.model_dump(mode="json")
        | {"compute_dtype": "fp32", "activation_checkpointing": "none", "compile": False}
    )
    reference = replace(job, run=plain, out=tmp_path / "plain")
    monkeypatch.setattr(processes.torch.cuda, "is_available", lambda: False)
    assert train_here(reference) == 0
    for ours, theirs in zip(_metrics(job), _metrics(reference), strict=True):
        assert ours["batch_checksum"] == theirs["batch_checksum"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-2)


@pytest.mark.parametrize("scale", SCALES)
def test_an_interrupted_run_ends_as_one_that_was_not(
    scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(scale, tmp_path / "full")
    assert train_here(job) == 0
    stopped, reads = replace(job, out=tmp_path / "stopped"), iter(range(10**6))

    class Signals(training_runs.Store):
        def sequence(self, i: int) -> training_runs.Row:
            if next(reads) == 11:  # while the third of four steps reads its four rows
                signal.raise_signal(signal.SIGTERM)
            return super().sequence(i)

    monkeypatch.setattr(training_runs, "Store", Signals)
    with pytest.raises(StoppedError):
        train_here(stopped)
    assert not stopped.out.exists()
    assert train_here(stopped) == 0
    for whole, resumed in zip(_metrics(job), _metrics(stopped), strict=True):
        assert resumed["batch_checksum"] == whole["batch_checksum"]
        assert resumed["learning_rate"] == whole["learning_rate"]
        assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_memory_stays_below_the_estimate_and_well_above_half_of_it(tmp_path: Path) -> None:
    scale = Scale("cuda", 16_384, 0, compiled=False)
    # Four layers as wide as those of the 2B model.
    wide = {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "lightning_nkv": 16}  # fmt: skip
    job = _job(scale, tmp_path / "wide", steps=2, global_batch=2)
    job = replace(job, init=write_hypenet(tmp_path / "init", **(SHAPE | wide)))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    assert train_here(job) == 0
    shape = read_model_shape({"model_type": "hypenet", **TINY, **SHAPE, **wide})
    memory = estimate_training(job.run, shape, 1, GPUS["h200"]).memory
    peak = torch.cuda.max_memory_allocated()
    assert (memory.total - memory.reserve) / 2 < peak < memory.total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", EAGER_SCALES)
def test_prefixes_are_shared_in_each_precision(scale: Scale, dtype: torch.dtype) -> None:
    requests = requests_of(needle_prompts(6, scale.prompt_tokens, depths=3), new=6)
    answers = []
    for share in (True, False):
        options = EngineOptions(
            device=scale.device, share_prefixes=share, prefill_chunk_tokens=64, max_rows=1
        )
        model = tiny_model("hypenet").to(scale.device, dtype)
        engine = TransformersEngine(model, tiny_tokenizer(), options)
        assert engine.settings["prefixes"] == ("shared" if share else "full")
        answers.append({answer.key: answer for answer in engine.generate(requests)})
    assert answers[0] == answers[1]
