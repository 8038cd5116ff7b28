"""Submitting and waiting, with a queue in memory in place of SLURM's."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.config.cluster_schema import SlurmCluster
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.pipeline.bookkeeping import FAILURE
from amnesia_bench.pipeline.slurm import driver as module
from amnesia_bench.pipeline.slurm.driver import SlurmRun
from amnesia_bench.pipeline.slurm.jobs import SlurmJob, jobs_of, submit_script
from amnesia_bench.pipeline.slurm.script import RESUBMIT
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.store.layout import MANIFEST, stage_path
from tests.support.pipelines import small_graph

TOKENIZER, *DATA = small_graph()


def cluster() -> SlurmCluster:
    found = load_jobs(["experiment=table1", "cluster=slurm"])[0].config.cluster
    assert isinstance(found, SlurmCluster)
    return found


@dataclass
class Queue:
    """SLURM's queue: at each look, the first job without a dependency ends.

    `endings` are the ways in which jobs of a stage end, in order; by default a job succeeds.
    `limit` is the number of jobs that the user may have at the same time.
    """

    store: Path
    limit: int = 1000
    endings: dict[str, list[str]] = field(default_factory=dict)
    jobs: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)
    frozen: bool = False
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def submit(self, script: str) -> str | None:
        if len(self.jobs) >= self.limit:
            return None
        (stage,) = re.findall("--job-name=(.*)", script)
        after = re.findall("--dependency=afterok:(.*)", script)
        number = str(next(self.numbers))
        self.jobs[stage] = (number, after[0].split(":") if after else [])
        self.submitted.append(stage)
        return number

    def look(self, store: Path) -> dict[str, SlurmJob]:
        assert store == self.store
        return {
            stage: SlurmJob(id=number, stage=stage, state="PENDING", reason="", nodes="")
            for stage, (number, _) in self.jobs.items()
        }

    def step(self, _: float) -> None:
        """End one job; this stands in for waiting."""
        live = {number for number, _ in self.jobs.values()}
        for stage, (number, after) in list(self.jobs.items()):
            if self.frozen or live & set(after):
                continue
            del self.jobs[stage]
            endings = self.endings.get(stage, [])
            self.end(stage, number, endings.pop(0) if endings else "success")
            return

    def end(self, stage: str, number: str, ending: str) -> None:
        if ending == "success":
            folder = self.store / stage.partition(".")[0] / stage
            folder.mkdir(parents=True)
            (folder / MANIFEST).write_text("{}")
            return
        if ending == "failure":
            record = {"exit_code": 4, "ended": "2026-01-01T00:00:00+00:00", "said": "no"}
            (stage_path(self.store, stage) / FAILURE).write_text(json.dumps(record))
        if ending == "stopped":  # at its time limit; SLURM did not let it requeue itself
            (stage_path(self.store, stage) / RESUBMIT).touch()
        # SLURM cancels what depends on a job that did not succeed.
        self.jobs = {s: job for s, job in self.jobs.items() if number not in job[1]}


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue(tmp_path)
    seconds = itertools.count()
    monkeypatch.setattr(module, "jobs_of", queue.look)
    monkeypatch.setattr(module, "submit_script", queue.submit)
    monkeypatch.setattr(module.time, "sleep", queue.step)
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(seconds)))
    return queue


def run(store: Path) -> SlurmRun:
    stages: tuple[Stage, ...] = (TOKENIZER, *DATA)
    return SlurmRun(store, stages, dict.fromkeys((s.id for s in stages), 1), cluster())


def test_all_stages_are_submitted_at_once_and_each_waits_for_its_inputs(queue: Queue) -> None:
    jobs = run(queue.store)
    assert jobs.submit()
    assert queue.jobs[DATA[0].id][1] == [queue.jobs[TOKENIZER.id][0]]
    result = jobs.wait()
    assert (result.done, result.failed) == ({TOKENIZER.id, *(s.id for s in DATA)}, None)
    assert queue.submitted == [TOKENIZER.id, *(s.id for s in DATA)]


def test_a_second_driver_submits_nothing_and_waits_for_the_jobs_of_the_first(queue: Queue) -> None:
    run(queue.store).submit()
    second = run(queue.store)
    assert not second.submit()
    assert second.wait().done == frozenset()  # other processes did them
    assert len(queue.submitted) == 3


def test_what_the_user_may_not_submit_yet_is_submitted_later(queue: Queue) -> None:
    queue.limit = 1
    jobs = run(queue.store)
    jobs.submit()
    assert queue.submitted == [TOKENIZER.id]
    assert jobs.wait().failed is None
    assert len(queue.submitted) == 3


def test_a_stage_that_fails_ends_the_run_once_nothing_else_can_run(queue: Queue) -> None:
    queue.endings = {TOKENIZER.id: ["failure"]}
    jobs = run(queue.store)
    jobs.submit()
    result = jobs.wait()
    assert result.failed is not None
    assert "no job any more" in result.failed
    assert queue.submitted.count(TOKENIZER.id) == 1
    again = run(queue.store)  # the same command tries it again
    again.submit()
    assert again.wait().failed is None


def test_independent_stages_run_after_a_failure(queue: Queue) -> None:
    queue.endings = {DATA[0].id: ["failure"]}
    jobs = run(queue.store)
    jobs.submit()
    assert jobs.wait().done == {TOKENIZER.id, DATA[1].id}


def test_a_job_that_the_user_cancels_is_not_submitted_again(queue: Queue) -> None:
    queue.endings = {TOKENIZER.id: ["cancelled"]}
    jobs = run(queue.store)
    jobs.submit()
    assert "no job any more" in str(jobs.wait().failed)
    assert len(queue.submitted) == 3


def test_a_job_that_could_not_requeue_itself_is_submitted_again_with_its_dependents(
    queue: Queue,
) -> None:
    queue.endings = {TOKENIZER.id: ["stopped", "stopped"]}
    jobs = run(queue.store)
    jobs.submit()
    assert jobs.wait().failed is None
    assert queue.submitted.count(TOKENIZER.id) == 3
    assert not (stage_path(queue.store, TOKENIZER.id) / RESUBMIT).exists()


def test_a_restart_of_slurm_does_not_end_the_run(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = run(queue.store)
    jobs.submit()
    silent = iter([True] * 5)

    def look(store: Path) -> dict[str, SlurmJob]:
        if next(silent, False):
            raise StageFailedError("Unable to contact slurm controller")
        return queue.look(store)

    monkeypatch.setattr(module, "jobs_of", look)
    assert jobs.wait().failed is None
    queue.frozen = True
    later = run(queue.store / "other")
    monkeypatch.setattr(module, "jobs_of", lambda _: _raise(StageFailedError("down")))
    with pytest.raises(StageFailedError, match="down"):  # after half an hour
        later.wait()


def _raise(error: Exception) -> dict[str, SlurmJob]:
    raise error


def commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Put stand-ins for SLURM's commands into the PATH."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_only_living_jobs_of_this_store_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        ("amnesia /a", "trained.x", "1", "RUNNING", "None", "n[1-2]"),
        ("amnesia /a", "trained.y", "2", "PENDING", "Dependency", ""),
        ("amnesia /a", "trained.z", "3", "COMPLETED", "None", "n1"),
        ("amnesia /a", "trained.w", "4", "PENDING", "DependencyNeverSatisfied", ""),
        ("amnesia /b", "trained.x", "5", "RUNNING", "None", "n1"),
        ("(null)", "mine", "6", "RUNNING", "None", "n1"),
    ]
    text = "\n".join("\x1f".join(row) for row in rows)
    commands(tmp_path, monkeypatch, squeue=f"cat <<'END'\n{text}\nEND")
    found = jobs_of(Path("/a"))
    assert {stage: job.shown for stage, job in found.items()} == {
        "trained.x": "job 1, RUNNING on n[1-2]",
        "trained.y": "job 2, PENDING (Dependency)",
    }


@pytest.mark.parametrize(
    "message",
    [
        "sbatch: error: QOSMaxSubmitJobPerUserLimit",
        "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job "
        "violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
    ],
)
def test_a_full_queue_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    commands(tmp_path, monkeypatch, sbatch=f'echo "{message}" >&2; exit 1')
    assert submit_script("#!/bin/bash\n") is None


@pytest.mark.parametrize(
    ("script", "call", "error", "said"),
    [
        ("echo 'invalid partition specified: gpus' >&2; exit 1", submit_script, UserError,
         "sbatch refuses a job: invalid partition specified: gpus"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", jobs_of, StageFailedError,
         "squeue failed: Unable to contact"),
    ],
)  # fmt: skip
def test_refusals_are_shown_in_slurms_words(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    call: Callable[[object], object],
    error: type[Exception],
    said: str,
) -> None:
    commands(tmp_path, monkeypatch, sbatch=script, squeue=script)
    with pytest.raises(error, match=said):
        call(Path("/a") if call is jobs_of else "#!/bin/bash\n")


def test_status_needs_no_answer_of_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(tmp_path, monkeypatch, squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    assert main(["status", f"--store={tmp_path / 'store'}"]) == 0
    assert "0 stages" in capsys.readouterr().out
