"""One writer per artifact, on one machine or on many that share a file system.

A lease is a folder of numbered claims: `.<name>.lease/1`, `2`, ... The holder is the highest
claim. A claim is made by creating its file with O_EXCL, so of several processes that find the
same claim dead exactly one makes the next; its number is the fencing token. flock is not used:
on Lustre, GPFS and NFS it may succeed for everyone.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
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

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 300.0
# A claim is written at once after it is created: one that stays empty has lost its process.
_UNWRITTEN_SECONDS = 5.0
# A slow process may add its claim to a folder while that is being removed.
_REMOVALS = 3


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process behind a claim.

    `machine` tells apart reboots and containers that share a host name; `process_start` (clock
    ticks since boot, None where unknown) tells apart processes that got the same pid.
    """

    host: str
    machine: str
    pid: int
    process_start: int | None
    slurm_job_id: str | None
    since: str


@dataclass(frozen=True, kw_only=True)
class Claim:
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
    its heartbeat is older than `stale_seconds`.

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
    except OSError:  # released meanwhile
        return None
    finally:
        os.close(descriptor)
    if last is None or _is_stale(last, time.time() - last.heartbeat, stale_seconds):
        return None
    return last.holder


def _take(final: Path, stale_seconds: float, clock: Callable[[], float]) -> tuple[int, int]:
    folder = lease_path(final)
    while True:
        # Not exist_ok: pathlib looks again, and by then the folder may have been released.
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # released between the two calls
            continue
        except NotADirectoryError as error:
            what = f"{folder}: in the way of the lease of {final}"
            raise UserError(what, hint="Remove it.") from error
        taken = False
        try:
            last = _last_claim(descriptor)
            if last is not None and not _is_stale(last, clock() - last.heartbeat, stale_seconds):
                raise _busy(final, folder, last)
            number = 1 if last is None else last.number + 1
            _write_claim(descriptor, number)
            taken = _is_current(folder, descriptor, number)
            if taken:
                return descriptor, number
        except (FileExistsError, FileNotFoundError):  # another was faster, or released
            continue
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise
        finally:
            if not taken:
                os.close(descriptor)


def _numbers(descriptor: int) -> list[int]:
    return [int(name) for name in os.listdir(descriptor) if name.isdecimal()]


def _is_current(folder: Path, descriptor: int, number: int) -> bool:
    try:
        there = folder.stat()
    except OSError:
        return False
    return (
        os.path.samestat(there, os.fstat(descriptor))
        and max(_numbers(descriptor), default=0) == number
    )


def _write_claim(descriptor: int, number: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    claim = os.open(str(number), flags, 0o644, dir_fd=descriptor)
    try:
        os.write(claim, json.dumps(codec.to_json(_this_process())).encode())
    except OSError:
        os.unlink(str(number), dir_fd=descriptor)
        raise
    finally:
        os.close(claim)


def _last_claim(descriptor: int) -> Claim | None:
    number = max(_numbers(descriptor), default=None)
    if number is None:
        return None
    claim = Claim(number=number, holder=None, heartbeat=0.0)
    for _ in range(10):  # its owner may be between creating and writing it
        with os.fdopen(os.open(str(number), os.O_RDONLY, dir_fd=descriptor)) as file:
            claim = replace(claim, heartbeat=os.fstat(file.fileno()).st_mtime)
            with contextlib.suppress(ValueError, UserError):
                return replace(claim, holder=codec.from_json(Holder, json.load(file), "lease"))
        time.sleep(0.01)
    return claim


def _is_stale(claim: Claim, age_seconds: float, stale_seconds: float) -> bool:
    holder, me = claim.holder, _this_process()
    if holder is not None and (holder.host, holder.machine) == (me.host, me.machine):
        return not _is_alive(holder)
    # Whoever was slow to write a claim looks afterwards if it is still the highest.
    return age_seconds > (_UNWRITTEN_SECONDS if holder is None else stale_seconds)


def _busy(final: Path, folder: Path, claim: Claim) -> BusyError:
    if claim.holder is None:
        who = "a process that has not said who it is"
    else:
        job = claim.holder.slurm_job_id
        who = f"process {claim.holder.pid} on {claim.holder.host}"
        who += f" (SLURM job {job})" if job else ""
        who += f" since {claim.holder.since}"
    beat = datetime.fromtimestamp(claim.heartbeat, UTC).isoformat(timespec="seconds")
    return BusyError(
        f"{final}: being written by {who}, last heard of at {beat}",
        hint=f"Wait for it to end. If it is surely gone, delete {folder} and run again.",
    )


def _this_process() -> Holder:
    return Holder(
        host=platform.node(),
        machine=_machine(),
        pid=os.getpid(),
        process_start=_process_start(os.getpid()),
        slurm_job_id=os.environ.get("SLURM_JOB_ID"),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.system()


def _is_alive(holder: Holder) -> bool:
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and another user's
        pass
    start = _process_start(holder.pid)
    return start is None or holder.process_start is None or start == holder.process_start


def _process_start(pid: int) -> int | None:
    """Return when a process started, in ticks since boot: -1 for a zombie, None when unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name comes second, in parentheses, and may hold anything.
    fields = stat.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])
