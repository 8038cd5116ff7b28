"""Submitting and waiting, with a queue in memory in place of SLURM's."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.config.cluster_schema import SlurmCluster
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.pipeline.bookkeeping import FAILURE
from amnesia_bench.pipeline.restarts import RESTARTS, STARTS
from amnesia_bench.pipeline.run import RunOptions, run_graph
from amnesia_bench.pipeline.slurm import driver as module
from amnesia_bench.pipeline.slurm.driver import SlurmRun
from amnesia_bench.pipeline.slurm.endings import explain_ending, output_of_job
from amnesia_bench.pipeline.slurm.jobs import (
    QueueFullError,
    SlurmJob,
    jobs_of,
    submit_script,
    time_limit_of,
)
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
    ended: list[SlurmJob] = field(default_factory=list)
    frozen: bool = False
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def submit(self, script: str) -> str:
        if len(self.jobs) >= self.limit:
            raise QueueFullError("QOSMaxSubmitJobPerUserLimit")
        (stage,) = re.findall("--job-name=(.*)", script)
        after = re.findall("--dependency=afterok:(.*)", script)
        number = str(next(self.numbers))
        self.jobs[stage] = (number, after[0].split(":") if after else [])
        self.submitted.append(stage)
        return number

    def look(self, store: Path) -> list[SlurmJob]:
        assert store == self.store
        return [*self.ended, *(job(stage, number) for stage, (number, _) in self.jobs.items())]

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
        self.ended.append(job(stage, number, _STATES.get(ending, ending)))
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
        never = {other: job for other, job in self.jobs.items() if number in job[1]}
        self.ended += [job(other, number, "CANCELLED") for other, (number, _) in never.items()]
        self.jobs = {other: job for other, job in self.jobs.items() if other not in never}


_STATES = {"success": "COMPLETED", "failure": "FAILED", "stopped": "FAILED"}


def job(stage: str, number: str, state: str = "PENDING", reason: str = "None") -> SlurmJob:
    return SlurmJob(id=number, stage=stage, state=state, reason=reason, nodes="")


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue(tmp_path)
    seconds = itertools.count()
    monkeypatch.setattr(module, "all_jobs_of", queue.look)
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


def test_what_the_user_may_not_submit_yet_is_submitted_later(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.limit = 1
    jobs = run(queue.store)
    jobs.submit()
    assert queue.submitted == [TOKENIZER.id]
    assert jobs.wait().failed is None
    assert len(queue.submitted) == 3
    note = "note: SLURM accepts no more jobs for now: QOSMaxSubmitJobPerUserLimit\n"
    assert capsys.readouterr().err.count(note) == 1


def test_detach_says_which_stages_have_no_job_and_what_to_type(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.limit = 1
    monkeypatch.setattr(module, "time_limit_of", lambda partition: None)
    command = ["run", "experiment=table10", "profile=smoke", "cluster=slurm", "--detach"]
    command += [f"--store={queue.store}", f"--out={queue.store}/my results"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert len(queue.submitted) == 1
    stages = len(list(queue.store.glob("stages/*/stage.json")))
    assert f"{stages - 1} stages without a job: your queue is full" in printed.out
    (typed,) = re.findall("nohup amnesia (.*) > amnesia.log 2>&1 &\n", printed.out)
    words = shlex.split(typed)
    assert "--detach" not in words
    assert set(words) == set(command) - {"--detach"}
    # What is printed submits the others.
    assert main([*words, "--detach"]) == 0
    assert "without a job" in capsys.readouterr().out
    queue.limit = 1000
    assert main([*words, "--detach"]) == 0
    assert "without a job" not in capsys.readouterr().out
    assert len(queue.submitted) == stages


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


def test_the_failure_of_a_node_whose_clock_is_behind_is_shown(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.endings = {TOKENIZER.id: ["failure"]}  # dated long before the run
    monkeypatch.setattr(module, "time_limit_of", lambda partition: None)
    with pytest.raises(StageFailedError, match=f"{TOKENIZER.id}: no"):
        run_graph(queue.store, [TOKENIZER, *DATA], RunOptions(cluster=cluster()))


def test_independent_stages_run_after_a_failure(queue: Queue) -> None:
    queue.endings = {DATA[0].id: ["failure"]}
    jobs = run(queue.store)
    jobs.submit()
    assert jobs.wait().done == {TOKENIZER.id, DATA[1].id}


def test_a_job_that_the_user_cancels_is_not_submitted_again(queue: Queue) -> None:
    queue.endings = {TOKENIZER.id: ["CANCELLED"]}
    jobs = run(queue.store)
    jobs.submit()
    failed = str(jobs.wait().failed)
    assert "no job any more" in failed
    assert f"{TOKENIZER.id}: job 1 ended as CANCELLED." in failed
    assert "job 2" not in failed  # it was only waiting for job 1
    assert len(queue.submitted) == 3


@pytest.mark.parametrize("ending", ["stopped", "TIMEOUT", "NODE_FAIL", "PREEMPTED"])
def test_a_job_that_slurm_stopped_is_submitted_again_with_its_dependents(
    queue: Queue, ending: str
) -> None:
    queue.endings = {TOKENIZER.id: [ending, ending]}
    jobs = run(queue.store)
    jobs.submit()
    restarts = stage_path(queue.store, TOKENIZER.id) / RESTARTS
    restarts.write_text("{}")  # kept, so that it is not submitted for ever
    assert jobs.wait().failed is None
    assert queue.submitted.count(TOKENIZER.id) == 3
    assert not (stage_path(queue.store, TOKENIZER.id) / RESUBMIT).exists()
    assert restarts.exists()


def test_a_job_that_the_user_cancels_stays_cancelled_if_slurm_stops_another(queue: Queue) -> None:
    queue.endings = {DATA[0].id: ["CANCELLED"], DATA[1].id: ["TIMEOUT"]}
    jobs = run(queue.store)
    jobs.submit()
    assert jobs.wait().done == {TOKENIZER.id, DATA[1].id}
    assert queue.submitted.count(DATA[0].id) == 1
    assert queue.submitted.count(DATA[1].id) == 2


def test_a_user_who_submits_a_stage_again_allows_all_its_restarts(queue: Queue) -> None:
    folder = stage_path(queue.store, TOKENIZER.id)
    folder.mkdir(parents=True)
    (folder / RESTARTS).write_text("{}")
    (folder / STARTS).write_text("1\n2\n")
    run(queue.store).submit()
    assert not (folder / RESTARTS).exists()
    assert not (folder / STARTS).exists()


@pytest.mark.parametrize(
    ("state", "nodes", "output", "said"),
    [
        ("FAILED", "n7", None, "It ran on n7, and its output is not in"),
        ("OUT_OF_MEMORY", "n7", "Killed", "Increase cluster.memory_gb_per_node.\nKilled"),
        ("COMPLETED", "n7", "", "Its artifact has not appeared in the store."),
        ("FAILED", "n7", "module: no cuda", "ended as FAILED.\nmodule: no cuda"),
        ("CANCELLED", "", None, "ended as CANCELLED."),
    ],
)
def test_how_a_job_ended_is_explained(
    tmp_path: Path, state: str, nodes: str, output: str | None, said: str
) -> None:
    ended = SlurmJob(id="5", stage=TOKENIZER.id, state=state, reason="None", nodes=nodes)
    if output is not None:
        stage_path(tmp_path, TOKENIZER.id).mkdir(parents=True)
        output_of_job(tmp_path, TOKENIZER.id, "5").write_text(output)
    assert said in explain_ending(tmp_path, ended)
    assert ("do all nodes share" in explain_ending(tmp_path, ended)) == ("n7" in said)


def test_a_job_that_ended_in_its_setup_is_explained(tmp_path: Path) -> None:
    # SIGUSR1, which announces the time limit, ends the script without any output.
    ended = SlurmJob(id="5", stage=TOKENIZER.id, state="FAILED", reason="None", nodes="n7")
    stage_path(tmp_path, TOKENIZER.id).mkdir(parents=True)
    output_of_job(tmp_path, TOKENIZER.id, "5").touch()
    assert "cluster.setup" not in explain_ending(tmp_path, ended)
    (stage_path(tmp_path, TOKENIZER.id) / STARTS).write_text("5\n")
    assert "had not come to its stage: it was in cluster.setup" in explain_ending(tmp_path, ended)


def test_a_reason_to_wait_for_ever_is_printed_once(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = run(queue.store)
    jobs.submit()
    reasons = iter(["Priority", "QOSMaxWallDurationPerJobLimit", "QOSMaxWallDurationPerJobLimit"])

    def look(store: Path) -> list[SlurmJob]:
        found, reason = queue.look(store), next(reasons, "None")
        return [replace(job, reason=reason) for job in found]

    monkeypatch.setattr(module, "all_jobs_of", look)
    jobs.wait()
    printed = capsys.readouterr().err
    assert printed.count("waits: QOSMaxWallDurationPerJobLimit. `amnesia cancel`") == 1
    assert "Priority" not in printed


def test_a_restart_of_slurm_does_not_end_the_run(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = run(queue.store)
    jobs.submit()
    silent = iter([True] * 5)

    def look(store: Path) -> list[SlurmJob]:
        if next(silent, False):
            raise MissingEnvironmentError("Unable to contact slurm controller")
        return queue.look(store)

    monkeypatch.setattr(module, "all_jobs_of", look)
    assert jobs.wait().failed is None
    queue.frozen = True
    later = run(queue.store / "other")
    monkeypatch.setattr(module, "all_jobs_of", lambda _: _raise(MissingEnvironmentError("down")))
    with pytest.raises(MissingEnvironmentError, match="down"):  # after half an hour
        later.wait()


def test_a_restart_of_slurm_while_jobs_are_submitted_does_not_end_the_run(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.limit = 1
    jobs = run(queue.store)
    jobs.submit()
    silent = iter([True] * 5)

    def submit(script: str) -> str:
        if next(silent, False):
            raise MissingEnvironmentError("Unable to contact slurm controller")
        return queue.submit(script)

    monkeypatch.setattr(module, "submit_script", submit)
    assert jobs.wait().failed is None
    assert len(queue.submitted) == 3


def _raise(error: Exception) -> list[SlurmJob]:
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
        ("amnesia /a\nor not", "mine", "7", "RUNNING", "None", "n1"),
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
        "sbatch: error: Slurm job queue full, sleeping and retrying.",
    ],
)
def test_a_full_queue_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    commands(tmp_path, monkeypatch, sbatch=f'echo "{message}" >&2; exit 1')
    with pytest.raises(QueueFullError):
        submit_script("#!/bin/bash\n")


@pytest.mark.parametrize(
    "refusal",
    [
        "sbatch: error: invalid partition specified: gpus",
        "sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: "
        "Job violates accounting/QOS policy (job submit limit, the size and/or time limits)",
    ],
)
def test_refusals_are_shown_in_slurms_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    commands(tmp_path, monkeypatch, sbatch=f"echo '{refusal}' >&2; exit 1")
    with pytest.raises(UserError, match=re.escape(f"sbatch refuses a job: {refusal}")) as error:
        submit_script("#!/bin/bash\n")
    assert "cluster.partition" in str(error.value.hint)


def test_a_slurm_that_does_not_answer_is_no_mistake_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
    commands(tmp_path, monkeypatch, sbatch=silence, squeue=silence, sinfo=silence)
    for call in (lambda: submit_script("#!/bin/bash\n"), lambda: jobs_of(Path("/a"))):
        with pytest.raises(MissingEnvironmentError, match="failed: Unable to contact") as error:
            call()
        assert "Submitted jobs continue" in str(error.value.hint)


@pytest.mark.parametrize(
    ("partition", "hours"),
    [(None, 24.0), ("long", 36.5), ("short", 0.5), ("free", None), ("short,long", 36.5)],
)
def test_the_time_limit_of_a_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition: str | None, hours: float | None
) -> None:
    rows = {"short": "30:00", "long": "1-12:30:00", "normal*": "1-00:00:00", "free": "infinite"}
    wanted = "*" if partition is None else partition
    listed = [f"{name} {limit}" for name, limit in rows.items() if name in wanted or wanted == "*"]
    text = "\n".join(listed)
    commands(tmp_path, monkeypatch, sinfo=f"cat <<'END'\n{text}\nEND")
    assert time_limit_of(partition) == hours


def test_status_needs_no_answer_of_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(tmp_path, monkeypatch, squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    assert main(["status", f"--store={tmp_path / 'store'}"]) == 0
    assert "0 stages" in capsys.readouterr().out
