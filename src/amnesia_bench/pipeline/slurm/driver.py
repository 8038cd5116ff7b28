"""Submit the stages of a graph to SLURM, and wait until they are done.

All stages are submitted at once, each with a dependency on the jobs of its inputs. This process may
therefore end at any time: jobs continue without it, and the next call finds them by their names.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from amnesia_bench.config.cluster_schema import SlurmCluster
from amnesia_bench.errors import BusyError, StageFailedError
from amnesia_bench.pipeline.bookkeeping import FAILURE, StageState, read_failure, state_of
from amnesia_bench.pipeline.scheduler import SchedulerResult
from amnesia_bench.pipeline.slurm.jobs import SlurmJob, jobs_of, submit_script
from amnesia_bench.pipeline.slurm.script import RESUBMIT, batch_script, job_resources
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.store.files import make_folder
from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.lease import holding_lease

# A shared file system may show a manifest this long after the job that wrote it has ended.
_MANIFEST_SECONDS = 60.0
_OUTAGE_SECONDS = 1800.0  # how long SLURM may not answer
_WAIT_SECONDS = 1.0


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
        self._full = False  # whether SLURM accepts no more jobs of this user for now

    def scripts(self) -> dict[str, str]:
        """Return the batch script of each stage; the job of an input is named JOB_OF_<stage>."""
        ids = {stage.id for stage in self._stages}
        return {
            stage.id: self._script(
                stage, [f"JOB_OF_{read.id}" for read in stage.inputs if read.id in ids]
            )
            for stage in self._stages
        }

    def submit(self) -> bool:
        """Submit every stage that is not done and had no job; return whether there was any.

        Raises:
            UserError: SLURM refuses a job. Jobs that it accepted before are kept.
        """
        before, self._full = len(self.submitted), False
        # Two drivers must not submit the same stage at the same time.
        with _waiting_for_lease(self._store / "submission"):
            jobs = {stage: job.id for stage, job in jobs_of(self._store).items()}
            self.known |= jobs.keys()
            for stage in self._stages:
                if stage.id in self.known or self._is_done(stage):
                    continue
                inputs = [read.id for read in stage.inputs if not self._is_done(read)]
                if not jobs.keys() >= set(inputs):
                    continue  # an input failed, or could not be submitted yet
                folder = stage_path(self._store, stage.id)
                make_folder(folder)
                (folder / RESUBMIT).unlink(missing_ok=True)
                (folder / FAILURE).unlink(missing_ok=True)
                number = submit_script(self._script(stage, [jobs[id] for id in inputs]))
                if number is None:
                    self._full = True
                    break
                jobs[stage.id] = number
                self.known.add(stage.id)
                self.submitted.add(stage.id)
        return len(self.submitted) > before

    def wait(self) -> SchedulerResult:
        """Wait until all stages are done, or no job is left that could complete the others.

        Stages that could not be submitted yet are submitted when SLURM accepts more jobs.
        """
        last_job = time.monotonic()
        while pending := [stage for stage in self._stages if not self._is_done(stage)]:
            jobs = self._jobs()
            self._forget_stopped_jobs(stage for stage in pending if stage.id not in jobs)
            if any(stage.id not in self.known for stage in pending) and self.submit():
                continue
            now = time.monotonic()
            if self._full or any(stage.id in jobs for stage in pending):
                last_job = now
            failed = any(read_failure(self._store, stage.id) for stage in pending)
            if last_job < now and (failed or now - last_job > _MANIFEST_SECONDS):
                return self._result(_left_over(pending))
            time.sleep(self._cluster.poll_seconds)
        return self._result(None)

    @property
    def warnings(self) -> list[str]:
        """A message for each stage whose estimated time exceeds the cluster's time limit."""
        limit = self._cluster.time_limit_hours
        return [
            f"{id}: estimated at {resources.estimated_hours:.1f} h, above the "
            f"cluster.time_limit_hours of {limit:g}; its job saves its state and is requeued about "
            f"{int(resources.estimated_hours // limit)} times"
            for id, resources in self._resources.items()
            if resources.estimated_hours is not None and resources.estimated_hours > limit
        ]

    def _script(self, stage: Stage, after: Sequence[str]) -> str:
        resources = self._resources[stage.id]
        return batch_script(self._store, stage, resources, self._cluster, after)

    def _is_done(self, stage: Stage) -> bool:
        return state_of(self._store, stage.kind, stage.id) is StageState.CACHED

    def _jobs(self) -> Mapping[str, SlurmJob]:
        """Return the jobs of the store; wait while SLURM does not answer, as during a restart."""
        deadline = time.monotonic() + _OUTAGE_SECONDS
        while True:
            try:
                return jobs_of(self._store)
            except StageFailedError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(self._cluster.poll_seconds)

    def _forget_stopped_jobs(self, stages: Iterable[Stage]) -> None:
        """If a job has to be submitted again, also forget the jobs that depended on it.

        SLURM cancels dependent jobs when a job ends with an error, here because it was stopped at
        its time limit and could not requeue itself.
        """
        without_job = [stage.id for stage in stages]
        paths = {id: stage_path(self._store, id) for id in without_job}
        if any((path / RESUBMIT).exists() for path in paths.values()):
            self.known -= {id for id in without_job if read_failure(self._store, id) is None}

    def _result(self, failed: str | None) -> SchedulerResult:
        done = frozenset(stage.id for stage in self._stages if self._is_done(stage))
        return SchedulerResult(done=done & self.submitted, failed=failed)


def _left_over(pending: Sequence[Stage]) -> str:
    names = ", ".join(stage.id for stage in pending[:3])
    more = f" and {len(pending) - 3} more" if len(pending) > 3 else ""
    return f"SLURM has no job any more for {names}{more}."


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
