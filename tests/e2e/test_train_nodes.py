"""Training on several nodes equals training in one process; here, gloo replaces NCCL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from amnesia_bench.tracking.metrics_file import read_metrics
from tests.support.deadly_training import Deadly, run_and_die
from tests.support.node_training import OnNodes
from tests.support.training_runs import (
    Started,
    TinyJob,
    train_here,
    training_run,
    write_data,
    write_hypenet,
)

# What the configs for GPUs have in common, with two micro-batches for each of four processes.
LIKE_GPUS = {
    "steps": 6,
    "global_batch": 8,
    "activation_checkpointing": True,
    "checkpoints": {"every_steps": 3, "keep": 2, "asynchronous": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    write_hypenet(folder / "init")
    write_data(folder / "data")
    assert train_here(job(folder, "alone")) == 0
    return folder


def job(folder: Path, out: str, **changes: Any) -> TinyJob:
    run = training_run(LIKE_GPUS | changes)
    return TinyJob(run=run, init=folder / "init", data={"sft": folder / "data"}, out=folder / out)


def assert_same_training(alone: Path, out: Path) -> None:
    """Data are equal; losses, gradients and weights differ only by rounding."""
    lines = [read_metrics(path / "metrics.jsonl") for path in (alone, out)]
    for expected, line in zip(*lines, strict=True):
        for key in ("batch_checksum", "trained_tokens", "tokens", "documents"):
            assert line[key] == expected[key]
        for key in ("loss", "grad_norm"):
            assert line[key] == pytest.approx(expected[key], rel=1e-6), (key, line["step"])
    before, after = (load_file(path / "model.safetensors") for path in (alone, out))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_node", [(2,), (4,), (2, 2), (1, 1)])
def test_processes_and_nodes_with_the_fused_optimizer_equal_one_process(
    folder: Path, per_node: tuple[int, ...]
) -> None:
    mine = job(folder, f"nodes{per_node}")
    started = Started(mine, sum(per_node), OnNodes(*per_node, fused=True))
    assert started.wait() == [0] * sum(per_node), started.said
    assert_same_training(folder / "alone", mine.out)
