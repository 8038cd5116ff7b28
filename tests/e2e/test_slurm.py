"""Experiments on a real SLURM of two small nodes that runs on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mini_slurm import MiniSlurm, mini_slurm
from tests.support.slurm_runs import STAGES, Runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniSlurm]:
    with mini_slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def test_an_experiment_gives_the_cells_of_a_local_run(slurm: MiniSlurm, tmp_path: Path) -> None:
    on_slurm = Runs(slurm, tmp_path / "slurm")
    assert f"Submitted {STAGES} jobs; 0 were in the queue" in on_slurm.finish("--detach")
    status = on_slurm.amnesia("status", "--json")
    assert "(Dependency)" in status
    # The driver that submitted the jobs has ended; the next one finds them and waits for them.
    assert "Submitted 0 jobs" in on_slurm.finish()
    assert (tmp_path / "slurm" / "results" / "smoke" / "mine" / "report.html").is_file()
    assert set(on_slurm.attempts().values()) == {1}
    assert len(list(on_slurm.store.glob("stages/*/slurm-*.out"))) == STAGES
    assert "slurm-" in on_slurm.amnesia("logs", "tiny_pretrain-s0")
    local = Runs(slurm, tmp_path / "local")
    local.finish(cluster="local")
    assert on_slurm.cells() == local.cells()
    assert on_slurm.manifests().keys() == local.manifests().keys()


def test_what_the_cluster_does_not_have_is_refused_before_or_at_submission(
    slurm: MiniSlurm, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs")
    printed = runs.finish("cluster.partition=gpus", code=2)
    assert "sbatch refuses a job" in printed
    assert "invalid partition" in printed.lower()
    # SLURM would accept this job and never start it.
    printed = runs.finish("cluster.partition=short", code=2)
    assert "requests 12 h, and the partition short allows 0.5 h" in printed
    assert "Set cluster.time_limit_hours=0.5" in printed
    printed = runs.finish("cluster.options=['--gres=tpu:1']", code=2)
    assert "sbatch refuses a job" in printed
    # Nodes with fewer GPUs.
    printed = runs.finish("cluster.options=['--gpus-per-node=5']", code=2)
    assert "sbatch refuses a job" in printed
    assert "cluster.gpus_per_node" in printed
    runs.amnesia("cancel")
    assert not runs.manifests()


def test_jobs_that_cannot_start_end_the_run(slurm: MiniSlurm, tmp_path: Path) -> None:
    runs = Runs(slurm, tmp_path / "runs")
    # No job can start Python: SLURM cancels all that depends on the first ones.
    printed = runs.finish("cluster.python=/nowhere/python", code=4)
    assert "/nowhere/python: not found" in printed
    assert not slurm.call("squeue", "-h", "-t", "PENDING,RUNNING").strip()
    runs.finish("--detach")
    assert "Cancelled jobs: " in runs.amnesia("cancel")
    assert "The queue has no job of yours" in runs.amnesia("cancel")


def test_a_store_that_the_nodes_do_not_see(slurm: MiniSlurm, tmp_path: Path) -> None:
    runs = Runs(slurm, tmp_path / "runs")
    runs.store.mkdir()
    slurm.kill_node("n2")
    slurm.start_node("n2", hidden=runs.store)
    try:
        printed = runs.finish("cluster.options=['--nodelist=n2']", code=4)
    finally:
        slurm.kill_node("n2")
        slurm.start_node("n2")
    assert "It ran on n2, and its output is not in" in printed
    assert "do all nodes share this folder?" in printed


def test_slurm_that_does_not_answer(slurm: MiniSlurm, tmp_path: Path) -> None:
    conf = (slurm.folder / "slurm.conf").read_text()
    (tmp_path / "slurm.conf").write_text(
        conf.replace("SlurmctldPort=", "SlurmctldPort=1\nMessageTimeout=2\n#")
    )
    environment = {**slurm.environment, "SLURM_CONF": str(tmp_path / "slurm.conf")}
    runs = Runs(MiniSlurm(slurm.folder, environment), tmp_path / "runs")
    printed = runs.finish(code=6)
    assert "sinfo failed:" in printed
    assert "Run the same command again when SLURM answers." in printed
    assert "jobs are not shown" in runs.amnesia("status")
