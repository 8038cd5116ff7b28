"""The heartbeats of leases: whether the process that holds a lease is still alive.

A heartbeat is the mtime of the claim. Its age is the difference of two file times, both from the
clock of the file system: clocks of hosts differ, and a host must not take over a lease because its
own clock is ahead. The age of a heartbeat in the future is unknown, so a process that finds one
sets it to the current time. A live holder then renews it, and that of a dead holder becomes stale.

Some file systems (Lustre, for example) use the clocks of the hosts for the times of files. There,
the heartbeat of a live process whose clock is behind looks old. So a process that wants to take
over a lease by age first watches whether the heartbeat is renewed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.store import processes
from amnesia_bench.store.processes import Holder, is_alive, is_here

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 300.0
# After this time without a heartbeat, SLURM is asked whether the job of the holder still runs.
_SILENT_SECONDS = 45.0
# A process writes its claim immediately after creating the file. If the file is still empty after
# this time, the process has died.
_UNWRITTEN_SECONDS = 5.0
# A heartbeat further ahead of the file system's clock than this counts as one in the future.
FUTURE_SECONDS = 60.0
# How long it is watched whether a heartbeat is renewed.
_WATCH_SECONDS, _WATCH_PAUSE_SECONDS = 3 * HEARTBEAT_SECONDS, 0.2


@dataclass(frozen=True, kw_only=True)
class LeaseFile:
    """A numbered claim, read from disk; `holder` is None if its process has not written it yet."""

    number: int
    holder: Holder | None
    heartbeat: float


def is_stale(
    descriptor: int, claim: LeaseFile, stale_seconds: float, clock: Callable[[], float]
) -> bool:
    """Return whether a claim looks like that of a dead process.

    Args:
        descriptor: the lease folder.
        claim: the claim.
        stale_seconds: the age at which the heartbeat of a process on another machine is too old.
        clock: the clock to use if that of the file system cannot be read.
    """
    holder = claim.holder
    if holder is not None and is_here(holder):
        return not is_alive(holder)
    ahead = seconds_ahead(descriptor, claim, clock)
    if ahead > FUTURE_SECONDS:
        who = "a process" if holder is None else f"process {holder.pid} on {holder.host}"
        log.warning(
            "The last heartbeat of %s is %.0f s ahead of the clock of this file system: one of the "
            "two clocks was wrong. If the process is dead, its lease expires in %.0f s.",
            who, ahead, STALE_SECONDS,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # the claim is another user's, or was released
            os.utime(str(claim.number), dir_fd=descriptor)
        return False
    if holder is None:  # its process, if only slow, will check if its claim is still the highest
        return -ahead > _UNWRITTEN_SECONDS
    return -ahead > stale_seconds or (-ahead > _SILENT_SECONDS and processes.is_stopped_job(holder))


def seconds_ahead(descriptor: int, claim: LeaseFile, clock: Callable[[], float]) -> float:
    """Return heartbeat time minus file system time, which is negative for a past heartbeat."""
    return claim.heartbeat - _file_system_time(descriptor, clock)


def _file_system_time(descriptor: int, clock: Callable[[], float]) -> float:
    """Return the file system's current time, which is the mtime of a new file in the folder."""
    name = f".now-{secrets.token_hex(8)}"
    try:
        probe = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=descriptor)
    except OSError:  # the file system is read-only or full
        return clock()
    try:
        return os.fstat(probe).st_mtime
    finally:
        os.close(probe)
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=descriptor)


def must_be_watched(claim: LeaseFile) -> bool:
    """Return whether only the age of its heartbeat shows that the holder of a claim is dead."""
    holder = claim.holder
    return holder is not None and not is_here(holder) and not processes.is_stopped_job(holder)


def is_renewed(folder: Path, claim: LeaseFile) -> bool:
    """Watch a claim for three heartbeats; return whether one comes, as from a live process.

    Args:
        folder: the lease folder.
        claim: a claim in it. If it is removed meanwhile, the result is False.
    """
    deadline = time.monotonic() + _WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_WATCH_PAUSE_SECONDS)
        try:
            if (folder / str(claim.number)).stat().st_mtime != claim.heartbeat:
                return True
        except FileNotFoundError:
            return False
    return False
