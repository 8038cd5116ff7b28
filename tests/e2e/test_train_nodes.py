"""Training on several nodes equals training in one process; here, gloo replaces NCCL."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
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
    "activation_checkpointing": "full",
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
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    before, after = (load_file(path / "model.safetensors") for path in (alone, out))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("per_node", "mesh"),
    [
        ((2,), (2,)),
        ((2, 2), (2, 2)),
        pytest.param((4,), (4,), marks=slow),
        pytest.param((1, 1), (2,), marks=slow),  # one process per node: one copy,
    ],
)
def test_processes_and_nodes_with_the_fused_optimizer_equal_one_process(
    folder: Path, per_node: tuple[int, ...], mesh: tuple[int, ...]
) -> None:
    mine = job(folder, f"nodes{per_node}")
    size = sum(per_node)
    started = Started(mine, size, OnNodes(*per_node, fused=True))
    assert started.wait() == [0] * size, started.said
    assert started.said.count(f"mesh {mesh}") == size
    assert_same_training(folder / "alone", mine.out)


@slow
def test_frozen_tensors_stay_frozen_on_several_nodes(folder: Path) -> None:
    freeze = {"roles": ["q", "k"], "layers": "all"}
    assert train_here(job(folder, "frozen_alone", freeze=freeze)) == 0
    mine = job(folder, "frozen", freeze=freeze)
    started = Started(mine, 4, OnNodes(2, 2))
    assert started.wait() == [0] * 4, started.said
    assert_same_training(folder / "frozen_alone", mine.out)


class DeadlyOnNodes:
    """The target of a process on one of several nodes, which dies at a chosen moment."""

    def __init__(self, deadly: Deadly, *per_node: int) -> None:
        self._deadly, self._nodes = deadly, OnNodes(*per_node)

    def __call__(self, job: TinyJob, rank: int, size: int, port: int, log: Path) -> None:
        self._nodes.prepare(rank)
        self._deadly(job, rank, size, port, log)


@pytest.mark.parametrize(
    ("killed", "left"),
    [
        ((2,), (1, 1)),
        pytest.param((4,), (2, 2), marks=slow),
        pytest.param((2, 2), (4,), marks=slow),
        pytest.param((2, 2), (1,), marks=slow),
        pytest.param((1,), (2, 2), marks=slow),
    ],
)
def test_a_run_resumes_on_other_nodes(
    folder: Path, killed: tuple[int, ...], left: tuple[int, ...]
) -> None:
    mine = job(folder, f"{killed}to{left}")
    assert run_and_die(mine, DeadlyOnNodes(Deadly("step", 4), *killed), sum(killed))
    saves = mine.out.with_name(f"{mine.out.name}.training") / "checkpoints"
    assert (saves / "step-00000003/complete.json").is_file()
    started = Started(mine, sum(left), OnNodes(*left))
    assert started.wait() == [0] * sum(left), started.said
    assert_same_training(folder / "alone", mine.out)


def test_nodes_with_different_numbers_of_processes_are_refused(folder: Path) -> None:
    started = Started(job(folder, "uneven"), 3, OnNodes(2, 1))
    assert started.wait() == [2] * 3
    assert "the nodes have between 1 and 2 processes each" in started.said


# The worker of a node: what `amnesia train` does, with steps of at least so many seconds.
WORKER = """
import sys, time
from pathlib import Path
from amnesia_bench.errors import AmnesiaError
from amnesia_bench.training import loop
from tests.e2e.test_train_nodes import job
from tests.support.training_runs import train_here
folder, pause = Path(sys.argv[1]), float(sys.argv[2])
honest = loop.learning_rate
loop.learning_rate = lambda *args: (time.sleep(pause), honest(*args))[1]
try:
    sys.exit(train_here(job(folder, "launched", steps=20)))
except AmnesiaError as error:  # as the command line does
    sys.exit(int(error.exit_code))
"""


class Nodes:
    """Two nodes of two processes each, as a user starts them, with a common log."""

    def __init__(self, folder: Path, *, pause: float) -> None:
        script = folder / "worker.py"
        script.write_text(WORKER)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        root = Path(__file__).resolve().parents[2]
        options = [
            "--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-id=test",
            f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1",
        ]  # fmt: skip
        command = [sys.executable, "-m", "amnesia_bench.training.launch", *options, str(script)]
        self.log = folder / "nodes.log"
        with self.log.open("a") as log:
            self.agents = [
                subprocess.Popen(
                    [*command, str(folder), str(pause)],
                    env={**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"},
                    stdout=log,
                    stderr=log,
                )
                for _ in range(2)
            ]

    def wait(self) -> list[int]:
        """Return the exit codes."""
        try:
            return [agent.wait(200) for agent in self.agents]
        finally:
            for agent in self.agents:
                agent.kill()


def lines_of(metrics: Path) -> int:
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


@slow
@pytest.mark.timeout(900)
def test_a_signal_to_one_of_two_nodes_saves_and_stops_both(folder: Path) -> None:
    assert train_here(job(folder, "uninterrupted", steps=20)) == 0
    metrics = folder / "launched.training/metrics.jsonl"
    for node, number in ((1, signal.SIGUSR1), (0, signal.SIGTERM)):
        before = lines_of(metrics)
        nodes = Nodes(folder, pause=1.0)
        deadline = time.monotonic() + 200
        while lines_of(metrics) < before + 2:
            assert all(agent.poll() is None for agent in nodes.agents), nodes.log.read_text()
            assert time.monotonic() < deadline, nodes.log.read_text()
            time.sleep(0.1)
        nodes.agents[node].send_signal(number)
        assert nodes.wait() == [75, 75], nodes.log.read_text()
        saves = sorted(path.name for path in (metrics.parent / "checkpoints").iterdir())
        assert saves[-1] == f"step-{lines_of(metrics):08d}"
    nodes = Nodes(folder, pause=0.0)
    assert nodes.wait() == [0, 0], nodes.log.read_text()
    assert_same_training(folder / "uninterrupted", folder / "launched")
