"""Leases: at most one writer per artifact, even if several machines share the file system.

A lease is a folder of numbered claims: `.<name>.lease/1`, `2`, ... The process with the highest
claim holds the lease. A claim is a file created with O_EXCL: if several processes find that the
holder of the last claim is dead, exactly one of them can create the next claim. Its number is the
fencing token. flock is not used, since on Lustre, GPFS and NFS it may succeed for several processes
at once.

A heartbeat is the mtime of the claim. Its age is the difference of two file times, both from the
clock of the file system: clocks of hosts differ, and a host must not take over a lease because its
own clock is ahead. The age of a heartbeat in the future is unknown, so a process that finds one
sets it to the current time. A live holder then renews it, and that of a dead holder becomes stale.
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
# A process writes its claim immediately after creating the file. If the file is still empty after
# this time, the process has died.
_UNWRITTEN_SECONDS = 5.0
# A heartbeat further ahead of the file system's clock than this counts as one in the future.
_FUTURE_SECONDS = 60.0
# Attempts to remove a released lease folder, to which a slow process may still add its claim.
_REMOVALS = 3
# Attempts to take a lease while others take or release it, and the pause between them.
_ATTEMPTS, _PAUSE_SECONDS = 1000, 0.001
# The names of claims. The pattern is stricter than int(), which also accepts other names.
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_CLAIM_CHARACTERS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class LeaseFile:
    """A numbered claim, read from disk; `holder` is None if its process has not written it yet."""

    number: int
    holder: Holder | None
    heartbeat: float


class Lease:
    """The exclusive right to write one final folder; a thread renews its heartbeat."""

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
        """Check that this process still holds the lease; call it before publishing anything.

        Raises:
            StageFailedError: another process has taken over the lease.
        """
        if not _is_current(self._folder, self._descriptor, self.number):
            raise StageFailedError(
                f"{self._final}: another process took over while this one sent no heartbeat; "
                "this attempt publishes nothing"
            )

    def release(self) -> None:
        """Release the lease, unless another process has taken it over."""
        self._stop.set()
        self._thread.join()
        if _is_current(self._folder, self._descriptor, self.number):
            # The folder is renamed first, so that a slow process that still uses the old folder
            # cannot add a claim to a later lease. The next attempt removes folders of this name.
            discarded = new_working_path(self._final)
            # If the folder cannot be renamed, the lease becomes stale when this process ends.
            with contextlib.suppress(OSError):
                self._folder.rename(discarded)
            for _ in range(_REMOVALS):
                shutil.rmtree(discarded, ignore_errors=True)
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_seconds):
            # A failed heartbeat is ignored, since `check` runs before anything is published.
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
    """Hold the exclusive right to write a final folder during the block.

    The lease of a dead process on this machine is taken over immediately. The lease of a process on
    another machine is taken over when its heartbeat is older than `stale_seconds` according to the
    file system's clock. `clock` is used if that clock cannot be read.

    Raises:
        BusyError: a live process holds the lease.
    """
    lease = None
    try:
        with _deferred_signals():
            descriptor, number = _take(final, stale_seconds, clock)
            lease = Lease(final, descriptor, number, heartbeat_seconds)
        yield lease
    finally:
        if lease is not None:
            with _deferred_signals():
                lease.release()


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Defer SIGINT and SIGTERM to the end of the block, so that no incomplete lease remains."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets them
        yield
        return
    received: list[int] = []
    installed = ((number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM))
    # A handler is None if it was not set from Python; Python cannot restore such a handler.
    handlers = {number: handler for number, handler in installed if handler is not None}
    for number in handlers:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for deferred in received:
            signal.raise_signal(deferred)


def current_holder(final: Path, *, stale_seconds: float = STALE_SECONDS) -> Holder | None:
    """Return the live process that holds the lease of a final folder; None if there is none."""
    try:
        descriptor = os.open(lease_path(final), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        last = _last_claim(descriptor)
        if last is None or _is_stale(descriptor, last, stale_seconds, time.time):
            return None
    except OSError:  # the lease was released meanwhile
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
        f"{final}: other processes took its lease {_ATTEMPTS} times",
        hint=f"Run again. If no other process is running, delete {lease_path(final)}.",
    )


def _try_to_take(
    final: Path, stale_seconds: float, clock: Callable[[], float]
) -> tuple[int, int] | None:
    """Return the lease folder's descriptor and the new claim's number; None to try again."""
    folder = lease_path(final)
    # exist_ok=True would call is_dir, which fails if the folder is removed in between.
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:  # the lease was released between the two calls
        return None
    except NotADirectoryError as error:
        what = f"{folder}: is not a folder, and is in the way of the lease of {final}"
        raise UserError(what, hint="Remove it.") from error
    taken = False
    try:
        # The number is chosen before the last claim is read: if another process creates a claim in
        # between, it has this number, and ours cannot be created.
        number = 1 + max(_names(descriptor), default=0)
        last = _last_claim(descriptor)
        if last is not None and not _is_stale(descriptor, last, stale_seconds, clock):
            remote = last.holder is None or not is_here(last.holder)
            ahead = _seconds_ahead(descriptor, last, clock) if remote else 0.0
            raise _busy(final, folder, last, ahead)
        _write_claim(descriptor, number)
        taken = _is_current(folder, descriptor, number)
        return (descriptor, number) if taken else None
    except (FileExistsError, FileNotFoundError):  # another process took or released the lease
        return None
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    finally:
        if not taken:
            os.close(descriptor)


def _names(descriptor: int) -> dict[int, bool]:
    """Map every numeric name in a lease folder to whether it is a claim (a regular file)."""
    with os.scandir(descriptor) as entries:
        return {
            int(entry.name): entry.is_file(follow_symlinks=False)
            for entry in entries
            if _NUMBER.fullmatch(entry.name)
        }


def _last_number(descriptor: int) -> int | None:
    """Return the highest number of a claim, or None; links, folders and pipes are not claims."""
    names = _names(descriptor)
    return max((number for number, is_claim in names.items() if is_claim), default=None)


def _is_current(folder: Path, descriptor: int, number: int) -> bool:
    try:
        status = folder.stat()
    except OSError:
        return False
    return os.path.samestat(status, os.fstat(descriptor)) and _last_number(descriptor) == number


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
    for _ in range(10):  # the file may be empty, if its process has not written it yet
        with os.fdopen(os.open(str(number), os.O_RDONLY, dir_fd=descriptor)) as file:
            claim = replace(claim, heartbeat=os.fstat(file.fileno()).st_mtime)
            with contextlib.suppress(ValueError, UserError, RecursionError):
                content = json.loads(file.read(_CLAIM_CHARACTERS))
                return replace(claim, holder=codec.from_json(Holder, content, "lease"))
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
            "The last heartbeat of %s is %.0f s ahead of the clock of this file system: one of the "
            "two clocks was wrong. If the process is dead, its lease expires in %.0f s.",
            who, ahead, STALE_SECONDS,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # the claim is another user's, or was released
            os.utime(str(claim.number), dir_fd=descriptor)
        return False
    # It is safe to ignore an unwritten claim: its process, if only slow, afterwards checks whether
    # its claim is still the highest.
    return -ahead > (_UNWRITTEN_SECONDS if holder is None else stale_seconds)


def _seconds_ahead(descriptor: int, claim: LeaseFile, clock: Callable[[], float]) -> float:
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


def _busy(final: Path, folder: Path, claim: LeaseFile, seconds_ahead: float) -> BusyError:
    if claim.holder is None:
        who = "a process that has not written its claim yet"
    else:
        job = claim.holder.slurm_job_id
        who = f"process {claim.holder.pid} on {claim.holder.host}"
        who += f" (SLURM job {job})" if job else ""
        who += f" since {claim.holder.since}"
    beat = f"{claim.heartbeat:.0f} s after 1970"
    with contextlib.suppress(ValueError, OverflowError):  # the year would need five digits
        beat = datetime.fromtimestamp(claim.heartbeat, UTC).isoformat(timespec="seconds")
    if seconds_ahead > _FUTURE_SECONDS:
        beat += (
            f", which is {seconds_ahead:.0f} s ahead of the clock of this file system; if the "
            f"process is dead, its lease expires in {STALE_SECONDS:.0f} s"
        )
    return BusyError(
        f"{final}: is being written by {who}; its last heartbeat was at {beat}",
        hint=f"Wait for it to end. If you are sure that it is dead, delete {folder} and run again.",
    )
