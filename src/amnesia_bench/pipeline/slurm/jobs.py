"""Call SLURM's commands: list, submit and cancel the jobs of a store.

A job's name is the id of its stage, and its comment names the store, so every process finds the
jobs that an earlier one submitted, and jobs of other stores are left alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import MissingEnvironmentError, UserError

# States of jobs that have ended; any other job will run, is running or is about to end.
_ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
)  # fmt: skip
# Sites limit the number of a user's submitted jobs in several ways, each with its own message.
_LIMIT = re.compile(
    r"MaxSubmitJob|MaxJobs|job submit limit|MaxJobCount|job queue full|unable to accept job",
    re.IGNORECASE,
)
# Limits of a single job, for which SLURM may add a text that also mentions the number of jobs.
_SIZE_LIMIT = re.compile(r"(QOS|Assoc)\w*(Wall|GRES|CPU|TRES|Node|Mem)")
_NO_ANSWER = re.compile(r"unable to contact|connect failure|timed out", re.IGNORECASE)
_SEPARATOR = "\x1f"
# Also how long sbatch may retry by itself while SLURM's list of all jobs is full.
_QUEUE_SECONDS = 60


class QueueFullError(Exception):
    """SLURM accepts no more jobs of this user for now; the message is SLURM's."""


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A job that SLURM knows; it forgets jobs some minutes after they have ended.

    Attributes:
        id: number of the job.
        stage: id of the stage that it runs.
        state: state in SLURM's words, for example PENDING.
        reason: why a pending job waits, for example Dependency or Resources.
        nodes: the nodes of a running job.
    """

    id: str
    stage: str
    state: str
    reason: str
    nodes: str

    @property
    def lives(self) -> bool:
        """Whether the job will run, is running or is about to end."""
        return self.state not in _ENDED and self.reason != "DependencyNeverSatisfied"

    @property
    def shown(self) -> str:
        """The job in a few words, for example `job 12, PENDING (Dependency)`."""
        place = f" on {self.nodes}" if self.nodes else f" ({self.reason})"
        return f"job {self.id}, {self.state}{place}"


def slurm_is_installed() -> bool:
    """Return whether SLURM's commands exist on this machine."""
    return shutil.which("squeue") is not None


def comment_of(store: Path) -> str:
    """Return the comment that marks the jobs of a store."""
    return f"amnesia {store}"


def jobs_of(store: Path) -> dict[str, SlurmJob]:
    """Return this user's jobs of a store that have not ended, by the id of their stage.

    Raises:
        MissingEnvironmentError: SLURM is not installed, or does not answer.
    """
    return {job.stage: job for job in all_jobs_of(store) if job.lives}


def all_jobs_of(store: Path) -> list[SlurmJob]:
    """Return this user's jobs of a store, including those that ended some minutes ago.

    Raises:
        MissingEnvironmentError: SLURM is not installed, or does not answer.
    """
    columns = ("%k", "%j", "%i", "%T", "%r", "%N")
    options = ("--me", "--noheader", "--states=all", "--sort=i")
    output = _call(["squeue", *options, f"--format={_SEPARATOR.join(columns)}"])
    rows = [line.split(_SEPARATOR) for line in output.split("\n")]
    # The comments of other jobs may contain line breaks.
    own = [row for row in rows if row[0] == comment_of(store) and len(row) == len(columns)]
    return [
        SlurmJob(id=number, stage=stage, state=state, reason=reason, nodes=nodes)
        for _, stage, number, state, reason, nodes in own
    ]


def time_limit_of(partition: str | None) -> float | None:
    """Return the longest time in hours that a partition allows; None if it has no limit.

    Args:
        partition: a partition, or several separated by commas; None is the default partition.

    Raises:
        MissingEnvironmentError: SLURM is not installed, or does not answer.
    """
    options = [] if partition is None else [f"--partition={partition}"]
    output = _call(["sinfo", "--noheader", "--format=%P %l", *options])
    rows = [line.split() for line in output.splitlines()]
    limits = [_hours(limit) for name, limit in rows if partition is not None or name.endswith("*")]
    # SLURM starts a job in any of several partitions.
    return None if None in limits else max((hours for hours in limits if hours), default=None)


def _hours(limit: str) -> float | None:
    """Convert a time of sinfo, for example 1-12:00:00, 30:00 or infinite, to hours."""
    days, _, clock = limit.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in (days or "0", *parts)):
        return None
    hours, minutes, seconds = ([0, 0, 0] + [int(part) for part in parts])[-3:]
    return 24 * int(days or 0) + hours + minutes / 60 + seconds / 3600


def submit_script(script: str) -> str:
    """Submit a batch script, and return the job's number.

    Raises:
        QueueFullError: SLURM accepts no more jobs for now.
        UserError: SLURM refuses the script.
        MissingEnvironmentError: SLURM is not installed, or does not answer.
    """
    done = _completed(["sbatch", "--parsable"], script)
    if done is not None and done.returncode == 0:
        return done.stdout.strip().partition(";")[0]  # NUMBER;CLUSTER in a federation
    if done is None:
        raise QueueFullError(f"sbatch has not ended after {_QUEUE_SECONDS} seconds")
    if _LIMIT.search(done.stderr) and not _SIZE_LIMIT.search(done.stderr):
        raise QueueFullError(done.stderr.strip())
    if _NO_ANSWER.search(done.stderr):
        raise _no_answer("sbatch", done.stderr)
    raise UserError(
        f"sbatch refuses a job: {done.stderr.strip()}",
        hint="Set what your cluster has: cluster.partition, cluster.account, cluster.qos, "
        "cluster.gpus_per_node, cluster.cpus_per_node, cluster.memory_gb_per_node. `sinfo -o "
        "'%P %l %c %m %G'` lists partitions, time limits, CPUs, memory (MB) and GPUs; `amnesia "
        "run --dry-run ...` prints the scripts.",
    )


def cancel_jobs(jobs: Iterable[SlurmJob]) -> None:
    """Cancel jobs; running stages save their state first, as far as SLURM gives them time."""
    if numbers := [job.id for job in jobs]:
        _call(["scancel", *numbers])


def _call(command: Sequence[str]) -> str:
    done = _completed(command, None)
    if done is None:
        raise _no_answer(command[0], f"it has not ended after {_QUEUE_SECONDS} seconds")
    if done.returncode:
        raise _no_answer(command[0], done.stderr)
    return done.stdout


def _completed(command: Sequence[str], text: str | None) -> subprocess.CompletedProcess[str] | None:
    """Run a command of SLURM; return None if it does not end in time."""
    try:
        return subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_QUEUE_SECONDS,
        )
    except FileNotFoundError as error:
        raise MissingEnvironmentError(
            f"{command[0]}: not found, so SLURM is not installed on this machine",
            hint="Run the same command on a login node of the cluster. cluster=local needs no "
            "SLURM.",
        ) from error
    except subprocess.TimeoutExpired:
        return None


def _no_answer(command: str, reason: str) -> MissingEnvironmentError:
    return MissingEnvironmentError(
        f"{command} failed: {reason.strip()}",
        hint="Submitted jobs continue. Run the same command again when SLURM answers.",
    )
