"""Write the shards of a restored checkpoint, and verify every byte of an edited one.

A shard without edits is hardlinked. A shard with edits becomes a new file with the header and
layout of post's: it shares extents with post if the filesystem supports that; otherwise every byte
is copied. Never write through a hardlink: it would change post.

The expected contents (post with the patches applied) are written piece by piece, read back from the
file, compared and hashed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import StageFailedError
from amnesia_bench.store.held_files import HeldFiles
from amnesia_bench.surgery.edits import Edits, Patch
from amnesia_bench.weights.checkpoint import Checkpoint

PIECE_BYTES = 1 << 20
BUFFERS = 4
# Without flushes the kernel leaves gigabytes to the final fsync, while the disk only reads.
FLUSH_BYTES = 1 << 26
CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP)
FICLONE = 0x40049409  # linux/fs.h


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """A finished shard; `sha256` is None for a hardlink, whose bytes were not read."""

    name: str
    num_bytes: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class _Job:
    source: Path
    target: Path
    patches: tuple[Patch, ...]


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Open file descriptors; every read and write passes its own offset."""

    source: int
    spool: int
    target: int


def write_shards(post: Checkpoint, edits: Edits, work: Path) -> list[WrittenShard]:
    """Write every shard of post into `work`, repaired and verified, in post's order.

    Raises:
        StageFailedError: a written byte differs from the plan, or a shard of post was changed
            since its header was read.
        OSError: the disk is full, or cannot be read or written.
    """
    jobs = [
        _Job(
            source=source,
            target=work / source.name,
            patches=edits.patches.get(source.name, ()),
        )
        for source in (header.path for header in post.shards.values())
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(lambda job: _write_shard(job, post.held, edits.spool), jobs))


def check_tensors(post: Checkpoint, edits: Edits, work: Path) -> None:
    """Compare the hash of every edited tensor in the finished shards with the computed one.

    Raises:
        StageFailedError: a tensor differs from the computed one.
    """
    for tensor in edits.tensors:
        _, entry = post.tensors[tensor.name]
        with (work / tensor.shard).open("rb") as file:
            file.seek(entry.start)
            sha256 = hashlib.sha256(file.read(entry.num_bytes)).hexdigest()
        if sha256 != tensor.sha256_restored:
            raise StageFailedError(
                f"{tensor.shard}: tensor {tensor.name!r} differs from the computed one; "
                "nothing was published."
            )


def bytes_to_copy(sources: Iterable[Path], edits: Edits, work: Path) -> int:
    """Return the bytes to copy into `work`: edited shards, and shards on other devices."""
    device = work.stat().st_dev
    sizes = (
        source.stat().st_size
        for source in sources
        if edits.patches.get(source.name) or source.stat().st_dev != device
    )
    return sum(sizes)


def _write_shard(job: _Job, held: HeldFiles, spool: Path) -> WrittenShard:
    num_bytes = job.source.stat().st_size
    if not job.patches and _hardlink(job):
        held.check_link(job.source, job.target)
        return WrittenShard(name=job.target.name, num_bytes=num_bytes, sha256=None)
    with ExitStack() as stack:
        files = _Files(
            source=stack.enter_context(held.reading(job.source)).fileno(),
            spool=_open(stack, spool, os.O_RDONLY),
            target=_open(stack, job.target, os.O_RDWR | os.O_CREAT | os.O_EXCL),
        )
        hasher, flusher = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
        sha256 = _write_and_verify(files, job, num_bytes, (hasher, flusher))
        os.fsync(files.target)
    return WrittenShard(name=job.target.name, num_bytes=num_bytes, sha256=sha256)


def _write_and_verify(
    files: _Files, job: _Job, num_bytes: int, background: tuple[Executor, Executor]
) -> str:
    """Write the target, read it back, compare it with the plan, and return its sha256.

    `background` are a thread that hashes and one that flushes while the next pieces are read.
    """
    hasher, flusher = background
    flushed = _finished_future()
    cloned = _clone_extents(files)
    digest = hashlib.sha256()
    # A buffer is reused only after the hasher has finished with it.
    buffers = deque((bytearray(PIECE_BYTES), _finished_future()) for _ in range(BUFFERS))
    expected = bytearray(PIECE_BYTES)
    for start in range(0, num_bytes, PIECE_BYTES):
        length = min(PIECE_BYTES, num_bytes - start)
        actual, hashed = buffers.popleft()
        hashed.result()
        for buffer in (expected, actual):
            del buffer[length:]  # the last piece is shorter
        _read(files.source, memoryview(expected), start)
        changed = list(_overlap(job.patches, start, start + length))
        for part in changed:
            offset = part.start - start
            _read(files.spool, memoryview(expected)[offset:][: part.length], part.spool_start)
        if changed or not cloned:
            _write(files.target, memoryview(expected), start)
        _read(files.target, memoryview(actual), start)
        if expected != actual:
            wrong = start + next(i for i in range(length) if expected[i] != actual[i])
            raise StageFailedError(
                f"{job.target.name}: byte {wrong:,} reads back different from what was written.",
                hint="Do not trust this disk or this memory; nothing was published.",
            )
        buffers.append((actual, hasher.submit(digest.update, actual)))
        if start % FLUSH_BYTES == 0 and start and flushed.done():
            flushed.result()
            flushed = flusher.submit(os.fsync, files.target)
    for _, hashed in buffers:
        hashed.result()
    flushed.result()
    return digest.hexdigest()


def _finished_future() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _clone_extents(files: _Files) -> bool:
    """Share the source's extents with the target, if the filesystem can (XFS, btrfs)."""
    try:
        fcntl.ioctl(files.target, FICLONE, files.source)
    except OSError:
        return False
    return True


def _open(stack: ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, 0o644)
    stack.callback(os.close, descriptor)
    return descriptor


def _hardlink(job: _Job) -> bool:
    try:
        os.link(job.source.resolve(), job.target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        return False
    return True


def _overlap(patches: tuple[Patch, ...], start: int, end: int) -> Iterator[Patch]:
    """Yield the parts of the patches that lie inside [start, end)."""
    first = bisect_right(patches, start, key=lambda patch: patch.start + patch.length)
    for patch in patches[first:]:
        if patch.start >= end:
            return
        begin, stop = max(patch.start, start), min(patch.start + patch.length, end)
        yield Patch(
            start=begin,
            length=stop - begin,
            spool_start=patch.spool_start + begin - patch.start,
        )


def _write(descriptor: int, data: memoryview, start: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], start + done)


def _read(descriptor: int, into: memoryview, start: int) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], start + done)
        if not count:
            raise StageFailedError("A shard was truncated while it was being read.")
        done += count
