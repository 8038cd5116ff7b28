"""One writer per artifact, on one machine or on many that share a file system.

A lease is a folder of numbered claims: `.<name>.lease/1`, `2`, ... The holder is the highest
claim. A claim is made by creating its file with O_EXCL, so of several processes that find the
same claim dead exactly one makes the next; its number is the fencing token. flock is not used:
on Lustre, GPFS and NFS it may succeed for everyone.

Ages are differences of file times, which on NFS and on one machine come from one clock, that of the
file system: clocks of hosts differ, and a host must not take another's lease because its own clock
is ahead. A heartbeat that is dated in the future says nothing about its age, so whoever finds one
dates it back to now: a live holder renews it, a dead one does not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from amnesia_bench.errors import BusyError, StageFailedError, UserError
from amnesia_bench.records import codec
from amnesia_bench.store.layout import lease_path, new_working_path
from amnesia_bench.store.processes import Holder, is_alive, is_here, this_process

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 300.0
# A claim is written at once after it is created: one that stays empty has lost its process.
_UNWRITTEN_SECONDS = 5.0
# A heartbeat further ahead of the file system's clock than this is not taken for an age.
_FUTURE_SECONDS = 60.0
# A slow process may add its claim to a folder while that is being removed.
_REMOVALS = 3
# How often others may be faster, or release, before a process gives up.
_ATTEMPTS, _PAUSE_SECONDS = 1000, 0.001
# Anything else in the folder is not ours, whatever int() makes of its name.
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_CLAIM_CHARACTERS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class LeaseFile:
    """A numbered claim as read from disk; `holder` is None when the file is not readable yet."""

    number: int
    holder: Holder | None
    heartbeat: float


class Lease:
    """The right to write one final folder, kept alive by a thread."""

    def __init__(self, final: Path, descriptor: int, number: int, heartbeat_seconds: float) -> None:
        self.number = number
        self._final = final
        self._folder = lease_path(final)
        self._descriptor = descriptor
        self._heartbeat_seconds = heartbeat_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="amnesia-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Call before anything that others will see.

        Raises:
            StageFailedError: another process has taken over.
        """
        if not _is_current(self._folder, self._descriptor, self.number):
            raise StageFailedError(
                f"{self._final}: another process took over while this one did not answer; "
                "this attempt publishes nothing"
            )

    def release(self) -> None:
        """Give the lease back; nothing happens to a lease that another process took over."""
        self._stop.set()
        self._thread.join()
        if _is_current(self._folder, self._descriptor, self.number):
            # Removed in one step and under a name that the next attempt cleans: a slow process
            # that still looks at the old claims cannot add one to a lease of later.
            discarded = new_working_path(self._final)
            # A lease that cannot be removed is dead as soon as this process is.
            with contextlib.suppress(OSError):
                self._folder.rename(discarded)
            for _ in range(_REMOVALS):
                shutil.rmtree(discarded, ignore_errors=True)
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_seconds):
            # A beat that fails is only a late beat; `check` decides before publishing.
            with contextlib.suppress(OSError):
                os.utime(str(self.number), dir_fd=self._descriptor)


@contextmanager
def holding_lease(
    final: Path,
    *,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    stale_seconds: float = STALE_SECONDS,
    clock: Callable[[], float] = time.time,
) -> Iterator[Lease]:
    """Hold the only right to write a final folder.

    A claim of a dead process of this machine is taken over at once, one of another machine when
    its heartbeat is older than `stale_seconds` by the file system's clock. `clock` is asked where
    that cannot be read.

    Raises:
        BusyError: a live process holds it.
    """
    lease = None
    try:
        with _signals_wait():
            descriptor, number = _take(final, stale_seconds, clock)
            lease = Lease(final, descriptor, number, heartbeat_seconds)
        yield lease
    finally:
        if lease is not None:
            with _signals_wait():
                lease.release()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let what ends a process do so after this block: half a lease would stay behind."""
    if threading.current_thread() is not threading.main_thread():  # no signal comes to others
        yield
        return
    received: list[int] = []
    both = ((number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM))
    # None was not set by Python, and cannot be set again by it.
    handlers = {number: handler for number, handler in both if handler is not None}
    for number in handlers:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in received:
            signal.raise_signal(each)


def current_holder(final: Path, *, stale_seconds: float = STALE_SECONDS) -> Holder | None:
    """Return who is writing a final folder now; None when nobody is, or a dead process was."""
    try:
        descriptor = os.open(lease_path(final), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        last = _last_claim(descriptor)
        if last is None or _is_stale(descriptor, last, stale_seconds, time.time):
            return None
    except OSError:  # released meanwhile
        return None
    finally:
        os.close(descriptor)
    return last.holder


def _take(final: Path, stale_seconds: float, clock: Callable[[], float]) -> tuple[int, int]:
    for _ in range(_ATTEMPTS):
        if (taken := _try_to_take(final, stale_seconds, clock)) is not None:
            return taken
        time.sleep(_PAUSE_SECONDS)
    raise BusyError(
        f"{final}: other processes were faster {_ATTEMPTS} times",
        hint=f"Run again. If nothing else is running, delete {lease_path(final)}.",
    )


def _try_to_take(
    final: Path, stale_seconds: float, clock: Callable[[], float]
) -> tuple[int, int] | None:
    """Return the open folder and the number of a new claim; None if another process was faster."""
    folder = lease_path(final)
    # Not exist_ok: pathlib looks again, and by then the folder may have been released.
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:  # released between the two calls
        return None
    except NotADirectoryError as error:
        what = f"{folder}: in the way of the lease of {final}"
        raise UserError(what, hint="Remove it.") from error
    taken = False
    try:
        # Before the last claim is read: one that comes in between then has this number already.
        number = 1 + max(_names(descriptor), default=0)
        last = _last_claim(descriptor)
        if last is not None and not _is_stale(descriptor, last, stale_seconds, clock):
            elsewhere = last.holder is None or not is_here(last.holder)
            ahead = _seconds_ahead(descriptor, last, clock) if elsewhere else 0.0
            raise _busy(final, folder, last, ahead)
        _write_claim(descriptor, number)
        taken = _is_current(folder, descriptor, number)
        return (descriptor, number) if taken else None
    except (FileExistsError, FileNotFoundError):  # another was faster, or released
        return None
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    finally:
        if not taken:
            os.close(descriptor)


def _names(descriptor: int) -> dict[int, bool]:
    """Return every number that is taken in a lease folder, and whether it is a claim."""
    with os.scandir(descriptor) as entries:
        return {
            int(entry.name): entry.is_file(follow_symlinks=False)
            for entry in entries
            if _NUMBER.fullmatch(entry.name)
        }


def _last_number(descriptor: int) -> int | None:
    """Return the number of the highest claim; links, folders and pipes are none."""
    names = _names(descriptor)
    return max((number for number, is_claim in names.items() if is_claim), default=None)


def _is_current(folder: Path, descriptor: int, number: int) -> bool:
    try:
        there = folder.stat()
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(descriptor)) and _last_number(descriptor) == number


def _write_claim(descriptor: int, number: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    claim = os.open(str(number), flags, 0o644, dir_fd=descriptor)
    try:
        os.write(claim, json.dumps(codec.to_json(this_process())).encode())
    except OSError:
        os.unlink(str(number), dir_fd=descriptor)
        raise
    finally:
        os.close(claim)


def _last_claim(descriptor: int) -> LeaseFile | None:
    number = _last_number(descriptor)
    if number is None:
        return None
    claim = LeaseFile(number=number, holder=None, heartbeat=0.0)
    for _ in range(10):  # its owner may be between creating and writing it
        with os.fdopen(os.open(str(number), os.O_RDONLY, dir_fd=descriptor)) as file:
            claim = replace(claim, heartbeat=os.fstat(file.fileno()).st_mtime)
            with contextlib.suppress(ValueError, UserError, RecursionError):
                said = json.loads(file.read(_CLAIM_CHARACTERS))
                return replace(claim, holder=codec.from_json(Holder, said, "lease"))
        time.sleep(0.01)
    return claim


def _is_stale(
    descriptor: int, claim: LeaseFile, stale_seconds: float, clock: Callable[[], float]
) -> bool:
    holder = claim.holder
    if holder is not None and is_here(holder):
        return not is_alive(holder)
    ahead = _seconds_ahead(descriptor, claim, clock)
    if ahead > _FUTURE_SECONDS:
        who = "a process" if holder is None else f"process {holder.pid} on {holder.host}"
        log.warning(
            "%s last showed itself %.0f s in the future of this file system: its clock, or this "
            "one, was wrong. If it is dead, it can be followed in %.0f s.",
            who, ahead, STALE_SECONDS,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # of another user, or released
            os.utime(str(claim.number), dir_fd=descriptor)
        return False
    # Whoever was slow to write a claim looks afterwards if it is still the highest.
    return -ahead > (_UNWRITTEN_SECONDS if holder is None else stale_seconds)


def _seconds_ahead(descriptor: int, claim: LeaseFile, clock: Callable[[], float]) -> float:
    """Return how far a heartbeat lies in the future of the file system; negative is its age."""
    return claim.heartbeat - _file_system_time(descriptor, clock)


def _file_system_time(descriptor: int, clock: Callable[[], float]) -> float:
    """Return the time that the file system gives to what is written to a folder now."""
    name = f".now-{secrets.token_hex(8)}"
    try:
        probe = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=descriptor)
    except OSError:  # may only be read, or is full
        return clock()
    try:
        return os.fstat(probe).st_mtime
    finally:
        os.close(probe)
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=descriptor)


def _busy(final: Path, folder: Path, claim: LeaseFile, seconds_ahead: float) -> BusyError:
    if claim.holder is None:
        who = "a process that has not said who it is"
    else:
        job = claim.holder.slurm_job_id
        who = f"process {claim.holder.pid} on {claim.holder.host}"
        who += f" (SLURM job {job})" if job else ""
        who += f" since {claim.holder.since}"
    beat = f"{claim.heartbeat:.0f} s after 1970"
    with contextlib.suppress(ValueError, OverflowError):  # no year of four digits
        beat = datetime.fromtimestamp(claim.heartbeat, UTC).isoformat(timespec="seconds")
    if seconds_ahead > _FUTURE_SECONDS:
        beat += (
            f", which is {seconds_ahead:.0f} s in the future of this file system; if it is dead, "
            f"it can be followed in {STALE_SECONDS:.0f} s"
        )
    return BusyError(
        f"{final}: being written by {who}, last heard of at {beat}",
        hint=f"Wait for it to end. If it is surely gone, delete {folder} and run again.",
    )
