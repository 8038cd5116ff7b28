"""Processes as others know them: on which machine, since when, and whether they still run."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds something.

    `machine` tells apart reboots and containers that share a host name; `process_start` (clock
    ticks since boot, None where unknown) tells apart processes that got the same pid.
    """

    host: str
    machine: str
    pid: int
    process_start: int | None
    slurm_job_id: str | None
    since: str


def this_process() -> Holder:
    """Return the process that asks."""
    return Holder(
        host=platform.node(),
        machine=_machine(),
        pid=os.getpid(),
        process_start=process_start(os.getpid()),
        slurm_job_id=os.environ.get("SLURM_JOB_ID"),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def is_here(holder: Holder) -> bool:
    """Return whether a process is, or was, one of this machine since it was started."""
    me = this_process()
    return (holder.host, holder.machine) == (me.host, me.machine)


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.system()


def is_alive(holder: Holder) -> bool:
    """Return whether a process of this machine still runs; see `is_here`."""
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):  # the latter: no process can have this number
        return False
    except PermissionError:  # alive, and another user's
        pass
    start = process_start(holder.pid)
    return start is None or holder.process_start is None or start == holder.process_start


def process_start(pid: int) -> int | None:
    """Return when a process started, in ticks since boot: -1 for a zombie, None when unknown."""
    fields = _fields(pid)
    if fields is None:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])


def parent_of(pid: int) -> int | None:
    """Return the process that started another; None when unknown."""
    fields = _fields(pid)
    return None if fields is None else int(fields[1])


def _fields(pid: int) -> list[str] | None:
    """Return what the kernel says of a process, from its state on (proc_pid_stat(5), field 3)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name comes second, in parentheses, and may hold anything.
    return stat.rpartition(")")[2].split()
