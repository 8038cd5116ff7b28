"""Leases: at most one writer per artifact, even if several machines share the file system.

A lease is a folder of numbered claims: `.<name>.lease/1`, `2`, ... The process with the highest
claim holds the lease. A claim is a file created with O_EXCL: if several processes find that the
holder of the last claim is dead, exactly one of them can create the next claim. Its number is the
fencing token. flock is not used, since on Lustre, GPFS and NFS it may succeed for several processes
at once.

A thread of the holder renews the heartbeat of its claim; see `heartbeats`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from amnesia_bench.errors import BusyError, StageFailedError, UserError
from amnesia_bench.records import codec
from amnesia_bench.store.heartbeats import (
    FUTURE_SECONDS,
    HEARTBEAT_SECONDS,
    STALE_SECONDS,
    LeaseFile,
    is_renewed,
    is_stale,
    must_be_watched,
    seconds_ahead,
)
from amnesia_bench.store.layout import lease_path, new_working_path
from amnesia_bench.store.processes import Holder, is_here, this_process

# Attempts to remove a released lease folder, to which a slow process may still add its claim.
_REMOVALS = 3
# Attempts to take a lease while others take or release it, and the pause between them.
_ATTEMPTS, _PAUSE_SECONDS = 1000, 0.001
_LATE = " by a clock that is behind ours, and was renewed since"
# The names of claims. The pattern is stricter than int(), which also accepts other names.
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_CLAIM_CHARACTERS = 1 << 16


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
    file system's clock and is not renewed for three more heartbeats, or sooner if SLURM knows that
    the job of the process has stopped. `clock` is used if that clock cannot be read.

    Raises:
        BusyError: a live process holds the lease.
    """
    lease: Lease | None = None
    silent: LeaseFile | None = None
    try:
        while lease is None:
            with _deferred_signals():
                taken = _take(final, stale_seconds, clock, silent)
                if not isinstance(taken, LeaseFile):
                    lease = Lease(final, *taken, heartbeat_seconds)
            if isinstance(taken, LeaseFile):
                silent = taken
                if is_renewed(lease_path(final), silent):
                    raise _busy(final, silent, _LATE)
        yield lease
    finally:
        if lease is not None:
            with _deferred_signals():
                lease.release()


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Defer signals that end a process to the end of the block: no incomplete lease remains."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets them
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    installed = ((number, signal.getsignal(number)) for number in numbers)
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
        if last is None or is_stale(descriptor, last, stale_seconds, time.time):
            return None
    except OSError:  # the lease was released meanwhile
        return None
    finally:
        os.close(descriptor)
    return last.holder


def _take(
    final: Path, stale_seconds: float, clock: Callable[[], float], silent: LeaseFile | None
) -> tuple[int, int] | LeaseFile:
    for _ in range(_ATTEMPTS):
        if (taken := _try_to_take(final, stale_seconds, clock, silent)) is not None:
            return taken
        time.sleep(_PAUSE_SECONDS)
    raise BusyError(
        f"{final}: other processes took its lease {_ATTEMPTS} times",
        hint=f"Run again. If no other process is running, delete {lease_path(final)}.",
    )


def _try_to_take(
    final: Path, stale_seconds: float, clock: Callable[[], float], silent: LeaseFile | None
) -> tuple[int, int] | LeaseFile | None:
    """Return the lease folder's descriptor and the new claim's number; None to try again.

    If the last claim looks stale but is not `silent`, a claim that was watched in vain, it is
    returned, and has to be watched first.
    """
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
        if last is not None and not is_stale(descriptor, last, stale_seconds, clock):
            remote = last.holder is None or not is_here(last.holder)
            ahead = seconds_ahead(descriptor, last, clock) if remote else 0.0
            raise _busy(final, last, _ahead(ahead) if ahead > FUTURE_SECONDS else "")
        if last is not None and last != silent and must_be_watched(last):
            return last
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


def _ahead(seconds: float) -> str:
    return (
        f", which is {seconds:.0f} s ahead of the clock of this file system; if the process is "
        f"dead, its lease expires in {STALE_SECONDS:.0f} s"
    )


def _busy(final: Path, claim: LeaseFile, about_heartbeat: str) -> BusyError:
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
    folder = lease_path(final)
    return BusyError(
        f"{final}: is being written by {who}; its last heartbeat was at {beat}{about_heartbeat}",
        hint=f"Wait for it to end. If you are sure that it is dead, delete {folder} and run again.",
    )
