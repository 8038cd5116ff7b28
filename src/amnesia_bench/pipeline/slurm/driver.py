"""Submit the stages of a graph to SLURM, and wait until they are done.

All stages are submitted at once, each with a dependency on the jobs of its inputs. This process may
therefore end at any time: jobs continue without it, and the next call finds them by their names.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from amnesia_bench.config.cluster_schema import SlurmCluster
from amnesia_bench.errors import BusyError, MissingEnvironmentError, UserError
from amnesia_bench.pipeline.bookkeeping import FAILURE, StageState, read_failure, state_of
from amnesia_bench.pipeline.restarts import RESTARTS, STARTS
from amnesia_bench.pipeline.scheduler import SchedulerResult
from amnesia_bench.pipeline.slurm.endings import explain_ending, unusual_reason
from amnesia_bench.pipeline.slurm.jobs import (
    QueueFullError,
    SlurmJob,
    all_jobs_of,
    submit_script,
    time_limit_of,
)
from amnesia_bench.pipeline.slurm.script import RESUBMIT, batch_script, job_resources
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.printable import message
from amnesia_bench.store.files import make_folder
from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.lease import holding_lease

# A shared file system may show a manifest this long after the job that wrote it has ended.
_MANIFEST_SECONDS = 60.0
_OUTAGE_SECONDS = 1800.0  # how long SLURM may not answer
_WAIT_SECONDS = 1.0
_NAMES = 3  # of stages in a message
# SLURM stopped the job, which may resume; some sites do not allow that a job is requeued.
_STOPPED = ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT")


_Answer = TypeVar("_Answer")


class SlurmRun:
    """The jobs of one graph.

    Args:
        store: the folder of all artifacts, on a file system that all nodes share.
        stages: the stages to run, each after its inputs; their specs are in the store.
        threads: number of CPU threads of each stage, by its id.
        cluster: the cluster.

    Attributes:
        known: ids of the stages that have, or had, a job.
        submitted: ids of the stages whose jobs this object submitted.
    """

    def __init__(
        self,
        store: Path,
        stages: Sequence[Stage],
        threads: Mapping[str, int],
        cluster: SlurmCluster,
    ) -> None:
        self._store = store
        self._stages = tuple(stages)
        self._cluster = cluster
        self._resources = {
            stage.id: job_resources(stage, threads[stage.id], cluster) for stage in stages
        }
        self.known: set[str] = set()
        self.submitted: set[str] = set()
        self._submissions = 0
        self._full = False  # whether SLURM accepts no more jobs of this user for now
        self._ended: dict[str, SlurmJob] = {}  # the last job of each stage, if it has ended
        self._noted: set[str] = set()  # subjects of notes that were printed

    def scripts(self) -> dict[str, str]:
        """Return the batch script of each stage; the job of an input is named JOB_OF_<stage>."""
        ids = {stage.id for stage in self._stages}
        return {
            stage.id: self._script(
                stage, [f"JOB_OF_{read.id}" for read in stage.inputs if read.id in ids]
            )
            for stage in self._stages
        }

    @property
    def without_job(self) -> int:
        """The number of stages that have no job because SLURM accepts no more jobs for now."""
        if not self._full:
            return 0
        return sum(
            stage.id not in self.known and not self._is_done(stage) for stage in self._stages
        )

    def submit(self) -> bool:
        """Submit every stage that is not done and had no job; return whether there was any.

        Raises:
            UserError: SLURM refuses a job. Jobs that it accepted before are kept.
            MissingEnvironmentError: SLURM does not answer.
        """
        before, self._full = self._submissions, False
        # Two drivers must not submit the same stage at the same time.
        with _waiting_for_lease(self._store / "submission"):
            jobs = {stage: job.id for stage, job in self._look().items()}
            self.known |= jobs.keys()
            for stage in self._stages:
                if stage.id in self.known or self._is_done(stage):
                    continue
                inputs = [read.id for read in stage.inputs if not self._is_done(read)]
                if not jobs.keys() >= set(inputs):
                    continue  # an input failed, or could not be submitted yet
                folder = stage_path(self._store, stage.id)
                make_folder(folder)
                if not (folder / RESUBMIT).exists():
                    (folder / RESTARTS).unlink(missing_ok=True)
                    (folder / STARTS).unlink(missing_ok=True)
                (folder / RESUBMIT).unlink(missing_ok=True)
                (folder / FAILURE).unlink(missing_ok=True)
                try:
                    number = submit_script(self._script(stage, [jobs[id] for id in inputs]))
                except QueueFullError as full:
                    self._full = True
                    self._note("full", f"SLURM accepts no more jobs for now: {full}")
                    break
                jobs[stage.id] = number
                self.known.add(stage.id)
                self.submitted.add(stage.id)
                self._submissions += 1
        return self._submissions > before

    def wait(self) -> SchedulerResult:
        """Wait until all stages are done, or no job is left that could complete the others.

        Stages that could not be submitted yet are submitted when SLURM accepts more jobs.
        """
        last_job = time.monotonic()
        while pending := [stage for stage in self._stages if not self._is_done(stage)]:
            jobs = self._answered(self._look)
            self._note_reasons(jobs.values())
            self._forget_stopped_jobs([stage for stage in pending if stage.id not in jobs])
            if any(stage.id not in self.known for stage in pending):
                before = self._submissions
                self._answered(self.submit)
                if self._submissions > before:
                    continue
            now = time.monotonic()
            if self._full or any(stage.id in jobs for stage in pending):
                last_job = now
            # If no job has completed, no artifact can still be on its way.
            ended = [self._ended[stage.id] for stage in pending if stage.id in self._ended]
            failed = bool(ended) and all(job.state != "COMPLETED" for job in ended)
            if last_job < now and (failed or now - last_job > _MANIFEST_SECONDS):
                return self._result(self._explain(pending))
            time.sleep(self._cluster.poll_seconds)
        return self._result(None)

    def check_partition(self) -> None:
        """Check that the partition allows the time that the jobs request.

        Raises:
            UserError: a job requests more time, so that it would wait for ever.
            MissingEnvironmentError: SLURM does not answer.
        """
        partition = self._cluster.partition
        allowed = time_limit_of(partition)
        longest = max(self._resources.items(), key=lambda item: item[1].hours)
        if allowed is not None and longest[1].hours > allowed:
            raise UserError(
                f"{longest[0]}: its job requests {longest[1].hours:.2g} h, and the partition "
                f"{partition or 'that is the default'} allows {allowed:.3g} h",
                hint=f"Set cluster.time_limit_hours={allowed:.3g}: longer trainings save their "
                "state and are requeued. `sinfo` lists the partitions and their limits.",
            )

    def print_time_limit_notes(self) -> None:
        """Print a note for each stage whose estimated time exceeds the cluster's time limit."""
        limit, margin = self._cluster.time_limit_hours, self._cluster.time_margin
        for id, wanted in self._resources.items():
            hours = wanted.estimated_hours
            if hours is not None and hours * margin > limit:
                note = (
                    f"{id}: estimated at {hours:.1f} h, times cluster.time_margin {margin:g}, "
                    f"above the cluster.time_limit_hours of {limit:g}; when its job reaches the "
                    "limit, it saves its state and is requeued"
                )
                self._note(id, note)

    def _script(self, stage: Stage, after: Sequence[str]) -> str:
        resources = self._resources[stage.id]
        return batch_script(self._store, stage, resources, self._cluster, after)

    def _is_done(self, stage: Stage) -> bool:
        return state_of(self._store, stage.kind, stage.id) is StageState.CACHED

    def _answered(self, ask: Callable[[], _Answer]) -> _Answer:
        """Ask SLURM, again and again while it does not answer, as during a restart."""
        deadline = time.monotonic() + _OUTAGE_SECONDS
        while True:
            try:
                return ask()
            except MissingEnvironmentError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(self._cluster.poll_seconds)

    def _look(self) -> dict[str, SlurmJob]:
        """Return the jobs of the store that have not ended, and remember those that have."""
        jobs = {job.stage: job for job in all_jobs_of(self._store)}
        self._ended |= {stage: job for stage, job in jobs.items() if not job.lives}
        return {stage: job for stage, job in jobs.items() if job.lives}

    def _note_reasons(self, jobs: Iterable[SlurmJob]) -> None:
        """Print, once per reason, that a job waits for something that may never happen."""
        for job in jobs:
            if (reason := unusual_reason(job)) is not None:
                note = f"{job.stage}: job {job.id} waits: {job.reason}"
                self._note(reason, f"{note}. `amnesia cancel` cancels the jobs.")

    def _note(self, subject: str, text: str) -> None:
        """Print a note, unless there was one about this subject."""
        if subject not in self._noted:
            self._noted.add(subject)
            sys.stderr.write(message(f"note: {text}\n"))

    def _forget_stopped_jobs(self, stages: Sequence[Stage]) -> None:
        """If a job has to be submitted again, also forget the jobs that depended on it.

        SLURM cancels dependent jobs when a job ends with an error, here because SLURM stopped it
        and it could not be requeued.

        Args:
            stages: the pending stages that have no job, each after its inputs.
        """
        again: set[str] = set()
        for stage in stages:
            marker = stage_path(self._store, stage.id) / RESUBMIT
            if stage.id in self._ended and self._ended[stage.id].state in _STOPPED:
                del self._ended[stage.id]
                marker.touch()
            if marker.exists() or any(read.id in again for read in stage.inputs):
                again.add(stage.id)
        self.known -= {id for id in again if read_failure(self._store, id) is None}

    def _explain(self, pending: Sequence[Stage]) -> str:
        """Return why no job can complete the pending stages."""
        names = ", ".join(stage.id for stage in pending[:_NAMES])
        more = f" and {len(pending) - _NAMES} more" if len(pending) > _NAMES else ""
        # SLURM cancels the jobs of stages whose inputs could not be made; they explain nothing.
        first = [stage.id for stage in pending if all(map(self._is_done, stage.inputs))]
        ended = [self._ended[id] for id in first if id in self._ended][:_NAMES]
        lines = [f"SLURM has no job any more for {names}{more}."]
        return "\n".join([*lines, *(explain_ending(self._store, job) for job in ended)])

    def _result(self, failed: str | None) -> SchedulerResult:
        done = frozenset(stage.id for stage in self._stages if self._is_done(stage))
        return SchedulerResult(done=done & self.submitted, failed=failed)


@contextmanager
def _waiting_for_lease(final: Path) -> Iterator[None]:
    while True:
        with ExitStack() as stack:
            try:
                stack.enter_context(holding_lease(final))
            except BusyError:
                time.sleep(_WAIT_SECONDS)
                continue
            yield
            return
