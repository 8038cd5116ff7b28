"""Experiments on a real SLURM of two small nodes that runs on this machine."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amnesia_bench.store.layout import MANIFEST
from amnesia_bench.training.recorder import METRICS
from tests.support.mini_slurm import MiniSlurm, mini_slurm
from tests.support.pipelines import ROOT

pytestmark = pytest.mark.slurm

# The softmax model of Table 10 before its fine-tune: two short trainings and its recall.
EXPERIMENT = """\
extends: table10
methods: [pre]
scopes: {tiny: {reasoning: []}}
"""
CLUSTER = """\
extends: slurm
gpus_per_node: 2
cpus_per_node: 2
poll_seconds: 1.0
save_seconds: 60
"""


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniSlurm]:
    with mini_slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


class Runs:
    """`amnesia` with a store of its own on a mini SLURM."""

    def __init__(self, slurm: MiniSlurm, folder: Path) -> None:
        self.slurm, self.folder, self.store = slurm, folder, folder / "store"
        folder.mkdir(exist_ok=True)
        (folder / "mine.yaml").write_text(EXPERIMENT)
        (folder / "mini.yaml").write_text(CLUSTER)

    def start(self, *words: str, cluster: str = "mini.yaml") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "amnesia_bench.cli.main", "run", f"--store={self.store}"]
        overrides = [f"experiment={self.folder}/mine.yaml", "profile=smoke"]
        overrides += [] if cluster == "local" else [f"cluster={self.folder}/{cluster}"]
        return subprocess.Popen(
            [*command, *overrides, *words, f"--out={self.folder}/results"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=self.slurm.environment,
        )

    def finish(self, *words: str, code: int = 0, cluster: str = "mini.yaml") -> str:
        running = self.start(*words, cluster=cluster)
        said, _ = running.communicate(timeout=900)
        assert running.returncode == code, said
        return said

    def amnesia(self, *words: str) -> str:
        command = [sys.executable, "-m", "amnesia_bench.cli.main", *words, f"--store={self.store}"]
        done = subprocess.run(
            command, env=self.slurm.environment, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def manifests(self) -> dict[str, str]:
        paths = self.store.glob(f"*/*/{MANIFEST}")
        return {path.parent.name: path.read_text() for path in paths}

    def cells(self) -> dict[str, object]:
        found = {}
        for path in sorted(self.store.glob("recall/*/*/cell.json")):
            cell = json.loads(path.read_text())
            found[path.parent.name] = (cell["value"], cell["n"], cell["metric"])
        return found

    def wait_for(self, what: Callable[[], object], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.slurm.call("squeue")
            time.sleep(0.5)


@pytest.mark.timeout(900)
def test_an_experiment_gives_the_cells_of_a_local_run(slurm: MiniSlurm, tmp_path: Path) -> None:
    on_slurm = Runs(slurm, tmp_path / "slurm")
    said = on_slurm.finish("--detach")
    assert "`amnesia status` shows the jobs" in said
    assert "job" in on_slurm.amnesia("status")
    said = on_slurm.finish()
    assert "Submitted 0 jobs" in said
    assert (tmp_path / "slurm" / "results" / "smoke" / "mine" / "report.html").is_file()
    assert slurm.call("squeue", "-h", "-o", "%T").split() in ([], ["COMPLETING"])
    local = Runs(slurm, tmp_path / "local")
    local.finish(cluster="local")
    assert on_slurm.cells() == local.cells()
    assert on_slurm.manifests().keys() == local.manifests().keys()


@pytest.mark.timeout(900)
def test_mistakes_and_failures(slurm: MiniSlurm, tmp_path: Path) -> None:
    runs = Runs(slurm, tmp_path / "runs")
    said = runs.finish("cluster.partition=gpus", code=2)
    assert "sbatch refuses a job" in said
    assert "invalid partition" in said.lower()
    assert not runs.manifests()
    # No job can start Python: SLURM cancels all that depends on the first ones.
    said = runs.finish("cluster.python=/nowhere/python", code=4)
    assert "/nowhere/python" in said
    assert not slurm.call("squeue", "-h", "-t", "PENDING,RUNNING").strip()
    runs.finish("--detach")
    assert "Cancelled jobs: " in runs.amnesia("cancel")
    runs.wait_for(lambda: not slurm.call("squeue", "-h", "-t", "PENDING,RUNNING").strip())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_that_is_killed_and_started_again_submits_nothing_twice(
    slurm: MiniSlurm, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs")
    first = runs.start()
    runs.wait_for(lambda: slurm.call("squeue", "-h", "-t", "PENDING"))
    numbers = slurm.call("squeue", "-h", "-o", "%i").split()
    first.kill()
    first.wait()
    assert f"{len(numbers)} were in the queue before" in runs.finish("--detach")
    runs.finish()
    jobs = [path.name for path in runs.store.glob("stages/*/slurm-*.out")]
    assert len(jobs) == len(runs.manifests())  # one job a stage


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_scancel_of_a_training_ends_the_run_and_the_next_one_resumes(
    slurm: MiniSlurm, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs")
    running = runs.start()
    trained = "trained.tiny_pretrain"
    runs.wait_for(lambda: trained in slurm.call("squeue", "-h", "-t", "R", "-o", "%j"))
    number = next(
        line.split()[0]
        for line in slurm.call("squeue", "-h", "-t", "R", "-o", "%i %j").splitlines()
        if trained in line
    )
    slurm.call("scancel", number)
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 4, said
    assert "no job any more" in said
    runs.finish()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_time_limit_saves_the_training_and_its_requeued_job_resumes(
    slurm: MiniSlurm, tmp_path: Path
) -> None:
    runs = Runs(slurm, tmp_path / "runs")
    # SLURM counts in minutes: jobs get two, and are told to save about one before their end.
    text = "extends: slurm\ncpus_per_node: 2\ntime_limit_hours: 0.034\nsave_seconds: 60\n"
    (runs.folder / "short.yaml").write_text(text)
    running = runs.start(_LONG, cluster="short.yaml")
    runs.wait_for(lambda: _restarted(slurm), seconds=900)
    _assert_that_it_resumes(runs)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    runs.amnesia("cancel")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_training_on_two_nodes_saves_on_a_signal_to_its_job_and_resumes(
    slurm: MiniSlurm, tmp_path: Path
) -> None:
    """Two processes on each of two nodes; they see GPUs that do not exist, and use the CPU."""
    runs = Runs(slurm, tmp_path / "runs")
    running = runs.start("profile.gpus=4", _LONG)
    runs.wait_for(lambda: "trained" in slurm.call("squeue", "-h", "-t", "R", "-o", "%j"), 600)
    runs.wait_for(lambda: list(runs.store.glob(f"trained/*.training/{METRICS}")), 300)
    runs.wait_for(lambda: _steps(runs), 300)
    rows = slurm.call("squeue", "-h", "-t", "R", "-o", "%i %D %j").splitlines()
    ((number, nodes, _),) = [row.split() for row in rows if "trained" in row]
    assert nodes == "2"
    slurm.call("scancel", "--signal=USR1", "--batch", number)
    runs.wait_for(lambda: _restarted(slurm), 300)
    _assert_that_it_resumes(runs)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    runs.amnesia("cancel")


_LONG = "profile.training_overrides=[train.steps=20000,train.optimizer.warmup_steps=1]"


def _steps(runs: Runs) -> list[int]:
    """Return the steps in the record of the training that runs."""
    (record,) = runs.store.glob(f"trained/*.training/{METRICS}")
    return [json.loads(line)["step"] for line in record.read_text().splitlines()]


def _assert_that_it_resumes(runs: Runs) -> None:
    """Wait until a requeued training does a further step, and check that it repeats none."""
    saved = _steps(runs)
    assert saved
    deadline = time.monotonic() + 600  # SLURM waits two minutes before it starts a requeued job
    while (steps := _steps(runs)) == saved:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > len(saved)


def _restarted(slurm: MiniSlurm) -> bool:
    """Return whether SLURM has requeued a job."""
    numbers = slurm.call("squeue", "-h", "-o", "%i").split()
    return any("Restarts=0" not in slurm.call("scontrol", "show", "job", n) for n in numbers)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_random_kills_of_drivers_jobs_and_nodes_lose_and_repeat_nothing(
    slurm: MiniSlurm, tmp_path: Path
) -> None:
    calm = Runs(slurm, tmp_path / "calm")
    calm.finish(cluster="local")
    runs, rng = Runs(slurm, tmp_path / "wild"), random.Random(3)
    running = runs.start()
    before: dict[str, str] = {}
    for _ in range(10):
        time.sleep(rng.uniform(2, 10))
        assert runs.manifests().items() >= before.items(), "a stage was done twice"
        before = runs.manifests()
        kind = rng.choice(["driver", "job", "node"])
        if kind == "driver":
            running.kill()
        elif kind == "node":
            slurm.kill_node("n2")
            slurm.start_node("n2")
        elif numbers := slurm.call("squeue", "-h", "-t", "R", "-o", "%i").split():
            slurm.call("scancel", "--signal=KILL", "--full", rng.choice(numbers))
        if running.poll() is not None:
            running.communicate()
            running = runs.start()
    running.communicate(timeout=600)
    runs.finish()
    assert runs.cells() == calm.cells()
