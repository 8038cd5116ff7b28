"""Identify processes across machines and reboots, and determine whether they are still running."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

# States of a SLURM job none of whose processes runs. A job that waits was requeued.
_STOPPED_JOB = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PENDING", "PREEMPTED", "TIMEOUT",
)  # fmt: skip
_SQUEUE_SECONDS = 10
_ASK_AGAIN_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The identity of a process that holds a lease.

    `machine` differs between boots of a host and between containers that share a host name.
    `process_start` (in clock ticks since boot, None if unknown) distinguishes processes to which
    the kernel gave the same pid one after another. `since` is the time of this record.
    """

    host: str
    machine: str
    pid: int
    process_start: int | None
    slurm_job_id: str | None
    since: str


def this_process() -> Holder:
    """Return the identity of the calling process."""
    return Holder(
        host=platform.node(),
        machine=_machine(),
        pid=os.getpid(),
        process_start=process_start(os.getpid()),
        slurm_job_id=os.environ.get("SLURM_JOB_ID"),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def is_here(holder: Holder) -> bool:
    """Return whether a process belongs to this machine (or container) and its current boot."""
    me = this_process()
    return (holder.host, holder.machine) == (me.host, me.machine)


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.system()


def is_alive(holder: Holder) -> bool:
    """Return whether a process is still running; it must be of this machine (see `is_here`)."""
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: no process can have this pid
        return False
    except PermissionError:  # the process is alive and belongs to another user
        pass
    start = process_start(holder.pid)
    return start is None or holder.process_start is None or start == holder.process_start


def is_stopped_job(holder: Holder) -> bool:
    """Return whether a process on another machine belonged to a SLURM job that has stopped.

    If SLURM does not know, or is not installed here, the result is False.
    """
    job = holder.slurm_job_id
    if job is None:
        return False
    # SLURM requeued the job of this process, and the other one belonged to its earlier run.
    if job == os.environ.get("SLURM_JOB_ID") and int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return True
    return _state_of_job(job, int(time.monotonic() // _ASK_AGAIN_SECONDS)) in _STOPPED_JOB


@lru_cache(maxsize=64)
def _state_of_job(job: str, _: int) -> str | None:
    """Return the state of a SLURM job; None if SLURM does not know it or does not answer."""
    words = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=_SQUEUE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def process_start(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot.

    The result is -1 for a zombie, and None if unknown.
    """
    fields = _fields(pid)
    if fields is None:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])


def parent_of(pid: int) -> int | None:
    """Return the pid of the parent process; None if unknown."""
    fields = _fields(pid)
    return None if fields is None else int(fields[1])


def _fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from field 3, the state, onwards (proc_pid_stat(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field, the command name in parentheses, may contain any character.
    return stat.rpartition(")")[2].split()
