"""Jobs, drivers and nodes that are stopped, on a real SLURM of two small nodes."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from amnesia_bench.pipeline.restarts import RESTARTS
from amnesia_bench.training.recorder import METRICS
from tests.support.mini_slurm import MiniSlurm, mini_slurm
from tests.support.slurm_runs import STAGES, Runs, ended

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

_FIRST_TRAINING = "trained.tiny_copy"
# Two trainings and an evaluation that the calm run has not done.
_SHORT = "profile.training_overrides=['train.steps=4','train.optimizer.warmup_steps=1']"
# Trainings that do not end while a test runs.
_ENDLESS = "profile.training_overrides=['train.steps=20000','train.optimizer.warmup_steps=1']"


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A local run of the experiment without any disturbance."""
    folder = tmp_path_factory.mktemp("calm")
    runs = Runs(MiniSlurm(folder, {**os.environ}), folder)
    runs.finish(cluster="local")
    return runs


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniSlurm]:
    with mini_slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def test_a_driver_that_is_killed_and_started_again_submits_nothing_twice(
    slurm: MiniSlurm, calm: Runs, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs", calm)
    first = runs.start(_SHORT)
    runs.wait_for(lambda: slurm.call("squeue", "-h", "-t", "PENDING"), first)
    first.kill()  # it may not have submitted all jobs
    first.wait()
    runs.finish("--detach", _SHORT)
    runs.finish(_SHORT)
    assert len(list(runs.store.glob("stages/*/slurm-*.out"))) == 3  # one job a stage
    assert set(runs.attempts().values()) == {1}


def test_two_drivers_at_once_on_a_slurm_that_is_nearly_full(calm: Runs, tmp_path: Path) -> None:
    with mini_slurm(tmp_path / "mini", max_jobs=2, keep_seconds=2) as slurm:
        runs = Runs(slurm, tmp_path / "runs", calm)
        drivers = [runs.start(_SHORT), runs.start(_SHORT)]
        printed = [ended(driver, 0) for driver in drivers]
    assert all(f"{STAGES} stages: {STAGES - 3} cached" in text for text in printed)
    assert len(list(runs.store.glob("stages/*/slurm-*.out"))) == 3
    assert set(runs.attempts().values()) == {1}


def test_scancel_of_a_training_ends_the_run_and_the_next_one_resumes(
    slurm: MiniSlurm, calm: Runs, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs", calm)
    running = runs.start(_ENDLESS)
    runs.wait_for(lambda: _steps(runs), running)
    number = runs.number_of(_FIRST_TRAINING)
    assert number is not None
    slurm.call("scancel", number)
    printed = ended(running, 4)
    assert f"job {number} ended as CANCELLED" in printed
    assert "Run the same command again to resume." in printed
    assert not runs.number_of("trained", "PENDING,RUNNING")  # SLURM cancelled what depends on it
    running = runs.start(_ENDLESS)
    _assert_that_it_resumes(runs)
    assert "RUNNING on n" in runs.amnesia("status", "--json")
    assert "Cancelled jobs: 3." in runs.cancel(running)


def test_a_time_limit_saves_the_training_and_its_requeued_job_resumes(
    slurm: MiniSlurm, calm: Runs, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs", calm)
    # SLURM counts in minutes: jobs get two, and are asked to save about one before their end.
    text = "extends: slurm\ncpus_per_node: 2\ntime_limit_hours: 0.034\nsave_seconds: 60\n"
    (runs.folder / "short.yaml").write_text(text)
    running = runs.start(_ENDLESS, cluster="short.yaml")
    runs.wait_for(lambda: _restarts(slurm), running)
    _assert_that_it_resumes(runs)
    runs.cancel(running)


def test_a_job_that_never_saves_anything_is_not_restarted_for_ever(
    slurm: MiniSlurm, calm: Runs, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs", calm)
    running = runs.start("cluster.max_restarts=1", _ENDLESS)
    for count in range(2):
        record = f'"count":{count}'
        runs.wait_for(lambda: record in _text(runs, RESTARTS).replace(" ", ""), running)  # noqa: B023
        number = runs.number_of(_FIRST_TRAINING)
        assert number is not None
        slurm.call("scancel", "--signal=USR1", "--batch", number)  # while it imports torch
    printed = ended(running, 4)
    assert "restarted cluster.max_restarts=1 times in a row without having saved" in printed
    assert "cluster.time_limit_hours" in printed


def test_a_training_on_two_nodes_saves_on_a_signal_and_resumes_to_equal_losses(
    slurm: MiniSlurm, calm: Runs, tmp_path: Path
) -> None:
    whole, stopped = (Runs(slurm, tmp_path / name, calm) for name in ("whole", "stopped"))
    losses = _losses_on_two_nodes(whole, stop=False)
    assert [step for step, _ in losses] == list(range(1, 31))
    assert _losses_on_two_nodes(stopped, stop=True) == losses
    assert (max(whole.attempts().values()), max(stopped.attempts().values())) == (1, 2)


def _losses_on_two_nodes(runs: Runs, *, stop: bool) -> list[tuple[int, float]]:
    """Train with two processes on each of two nodes; return the steps and their losses.

    The processes see GPUs that do not exist, and use the CPU.
    """
    slurm = runs.slurm
    before = set(runs.manifests())
    values = (
        "train.steps=30",
        "train.optimizer.warmup_steps=1",
        "train.optimizer.kind=adamw",
        "train.micro_batch=4",
    )
    running = runs.start("profile.gpus=4", f"profile.training_overrides={list(values)}")
    if stop:
        runs.wait_for(lambda: len(_steps(runs)) > 2, running)
        number = runs.number_of(_FIRST_TRAINING)
        assert number is not None
        assert slurm.call("squeue", "-h", "-j", number, "-o", "%D").strip() == "2"
        slurm.call("scancel", "--signal=USR1", "--batch", number)
        runs.wait_for(lambda: _restarts(slurm), running)
    runs.wait_for(lambda: set(runs.manifests()) - before, running)
    (trained,) = set(runs.manifests()) - before
    runs.cancel(running)
    runs.wait_for(lambda: not slurm.call("squeue", "-h", "-t", "R,CG").strip())
    record = runs.store / "trained" / trained / METRICS
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def test_the_job_of_a_node_that_fails_runs_on_the_other_node(
    slurm: MiniSlurm, calm: Runs, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs", calm)
    running = runs.start(_ENDLESS)
    runs.wait_for(lambda: _steps(runs), running)
    number = runs.number_of(_FIRST_TRAINING)
    assert number is not None
    node = slurm.call("squeue", "-h", "-j", number, "-o", "%N").strip()
    slurm.kill_node(node)
    # SLURM notices the failure after SlurmdTimeout, and requeues the job under the same number.
    runs.wait_for(
        lambda: (
            slurm.call("squeue", "-h", "-j", number, "-o", "%T %N").split()[:1] == ["RUNNING"]
            and node not in slurm.call("squeue", "-h", "-j", number, "-o", "%N")
        ),
        running,
    )
    runs.wait_for(lambda: max(runs.attempts().values()) == 2, running)
    assert f"job {number}, RUNNING on n" in runs.amnesia("status", "--json")
    runs.cancel(running)


def test_a_preempted_training_saves_its_state_and_resumes(
    slurm: MiniSlurm, calm: Runs, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs", calm)
    running = runs.start(_ENDLESS)
    runs.wait_for(lambda: _steps(runs), running)
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 5"]
    slurm.call("sbatch", "--output=/dev/null", *urgent)
    runs.wait_for(lambda: _restarts(slurm), running)
    _assert_that_it_resumes(runs)
    runs.cancel(running)


def test_a_job_on_a_node_without_gpus_is_named(
    slurm: MiniSlurm, calm: Runs, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs", calm)
    # SLURM places the job on any node, as on a cluster where GPUs are no resource of SLURM.
    printed = runs.finish("profile.gpus=1", "cluster.options=['--gpus-per-node=0']", _SHORT, code=4)
    assert f"the job needs 1 GPUs on {socket.gethostname()}, but sees 0" in printed
    assert "Choose nodes with GPUs: cluster.partition=NAME" in printed
    assert not runs.number_of("trained", "PENDING,RUNNING")


def test_lines_of_setup_that_do_not_end_are_not_started_for_ever(
    slurm: MiniSlurm, calm: Runs, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs", calm)
    # Each start of the job ends like one that SLURM stops, without its worker.
    setup = "cluster.setup=['scontrol requeue $SLURM_JOB_ID; sleep 60']"
    printed = runs.finish(setup, "cluster.max_restarts=1", _SHORT, code=4)
    assert "2 starts did not come to their stage. Do the lines of cluster.setup end?" in printed


@pytest.mark.parametrize("seed", [3])
def test_random_kills_of_drivers_jobs_and_nodes_lose_and_repeat_nothing(
    slurm: MiniSlurm, calm: Runs, tmp_path: Path, seed: int
) -> None:
    runs, rng = Runs(slurm, tmp_path / "wild"), random.Random(seed)
    running = runs.start()
    done: dict[str, str] = {}
    for _ in range(10):
        time.sleep(rng.uniform(1, 8))
        assert runs.manifests().items() >= done.items(), "a stage was done twice"
        done = runs.manifests()
        kind, chance = rng.choice(["driver", "job", "node"]), rng.random()
        if kind == "driver":
            running.kill()
        elif kind == "node":
            node = f"n{1 + int(2 * chance)}"
            slurm.kill_node(node)
            slurm.start_node(node)
        elif numbers := slurm.call("squeue", "-h", "-t", "R", "-o", "%i").split():
            number = numbers[int(chance * len(numbers))]
            slurm.call("scancel", "--signal=KILL", "--full", number)
        if running.poll() is not None:
            running.communicate()
            running = runs.start()
    running.communicate(timeout=600)
    runs.finish()
    assert runs.manifests().items() >= done.items()
    assert runs.cells() == calm.cells()
    assert runs.manifests().keys() == calm.manifests().keys()


def test_a_smoke_run_of_table_1_gives_the_cells_of_a_local_run(
    slurm: MiniSlurm, tmp_path: Path
) -> None:
    on_slurm, local = Runs(slurm, tmp_path / "slurm"), Runs(slurm, tmp_path / "local")
    on_slurm.finish(experiment="table1")
    assert (tmp_path / "slurm" / "results" / "smoke" / "table1" / "report.html").is_file()
    assert set(on_slurm.attempts().values()) == {1}
    local.finish(cluster="local", experiment="table1")
    assert on_slurm.cells() == local.cells()
    assert on_slurm.manifests().keys() == local.manifests().keys()


def _text(runs: Runs, name: str) -> str:
    """Return a file of the first training's stage that is not in the calm run; "" if missing."""
    return "".join(
        path.read_text() for path in runs.store.glob(f"stages/{_FIRST_TRAINING}*/{name}")
    )


def _steps(runs: Runs) -> list[int]:
    """Return the steps in the record of the training that runs; [] before its first step."""
    for record in runs.store.glob(f"trained/*.training/{METRICS}"):
        whole_lines = record.read_text().split("\n")[:-1]
        return [json.loads(line)["step"] for line in whole_lines]
    return []


def _assert_that_it_resumes(runs: Runs) -> None:
    """Wait until a stopped training does a further step; check that it repeats none."""
    runs.wait_for(lambda: max(runs.attempts().values()) > 1)
    saved = _steps(runs)
    assert saved
    runs.wait_for(lambda: len(_steps(runs)) > len(saved))
    steps = _steps(runs)
    assert steps == list(range(1, len(steps) + 1))


def _restarts(slurm: MiniSlurm) -> int:
    """Return how often SLURM has restarted jobs."""
    return sum(int(n) for n in slurm.call("squeue", "-h", "-O", "RestartCnt").split())
