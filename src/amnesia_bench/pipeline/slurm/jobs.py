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

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError

# States of jobs that have ended; any other job will run, is running or is about to end.
_ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
)  # fmt: skip
# Sites limit the number of a user's submitted jobs in several ways, each with its own message.
_LIMIT = re.compile(
    r"MaxSubmitJob|MaxJobs|job submit limit|MaxJobCount|unable to accept job", re.IGNORECASE
)
_SEPARATOR = "\x1f"
_QUEUE_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A job in SLURM's queue.

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
        MissingEnvironmentError: SLURM does not answer.
    """
    columns = ("%k", "%j", "%i", "%T", "%r", "%N")
    output = _call(["squeue", "--me", "--noheader", f"--format={_SEPARATOR.join(columns)}"])
    jobs = {}
    for line in output.splitlines():
        comment, stage, number, state, reason, nodes = line.split(_SEPARATOR)
        never = reason == "DependencyNeverSatisfied"
        if comment == comment_of(store) and state not in _ENDED and not never:
            jobs[stage] = SlurmJob(id=number, stage=stage, state=state, reason=reason, nodes=nodes)
    return jobs


def submit_script(script: str) -> str | None:
    """Submit a batch script; return the job's number, or None if the user has too many jobs.

    Raises:
        UserError: SLURM refuses the script.
        MissingEnvironmentError: SLURM is not installed.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise _not_installed("sbatch") from error
    if done.returncode == 0:
        return done.stdout.strip().partition(";")[0]  # NUMBER;CLUSTER in a federation
    if _LIMIT.search(done.stderr):
        return None
    raise UserError(
        f"sbatch refuses a job: {done.stderr.strip()}",
        hint="Set the cluster's options, for example cluster.partition=NAME cluster.account=NAME; "
        "`amnesia run --dry-run ...` prints the scripts. `sinfo` lists the partitions.",
    )


def cancel_jobs(jobs: Iterable[SlurmJob]) -> None:
    """Cancel jobs; running stages save their state first, as far as SLURM gives them time."""
    if numbers := [job.id for job in jobs]:
        _call(["scancel", *numbers])


def _call(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_QUEUE_SECONDS
        )
    except FileNotFoundError as error:
        raise _not_installed(command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise StageFailedError(
            f"{command[0]} has not answered within {_QUEUE_SECONDS} seconds", hint=_AGAIN
        ) from error
    if done.returncode:
        raise StageFailedError(f"{command[0]} failed: {done.stderr.strip()}", hint=_AGAIN)
    return done.stdout


_AGAIN = "Submitted jobs continue. Run the same command again when SLURM answers."


def _not_installed(command: str) -> MissingEnvironmentError:
    return MissingEnvironmentError(
        f"{command}: not found, so this machine cannot submit SLURM jobs",
        hint="Run the command on a login node of the cluster, or use cluster=local.",
    )
