"""Training on a GPU: the numbers of the CPU, and a run that goes on after a signal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amnesia_bench.tracking.metrics_file import read_metrics
from amnesia_bench.training import processes
from tests.support.training_runs import TinyJob, train_here, training_run, write_data, write_hypenet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def test_a_gpu_trains_as_the_cpu_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = {"every_steps": 3, "keep": 2, "asynchronous": True}
    job = TinyJob(
        run=training_run({"checkpoints": saves, "activation_checkpointing": "full"}),
        init=write_hypenet(tmp_path / "init"),
        data={"sft": write_data(tmp_path / "data")},
        out=tmp_path / "gpu",
    )
    assert train_here(job) == 0
    monkeypatch.setattr(processes.torch.cuda, "is_available", lambda: False)
    assert train_here(replace(job, out=tmp_path / "cpu")) == 0
    runs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("cpu", "gpu")]
    for cpu, gpu in zip(*runs, strict=True):
        assert gpu["batch_checksum"] == cpu["batch_checksum"]
        assert gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-3)
        assert gpu["grad_norm"] == pytest.approx(cpu["grad_norm"], rel=1e-2)
