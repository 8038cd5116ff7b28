"""Write the shards of a restored checkpoint, and verify every byte of the new files.

A shard without edits becomes a hard link to post's shard. A shard with edits, or one that cannot be
linked (for example because it is on another device), becomes a new file with the same header and
layout. The new file shares extents with post's shard if the filesystem supports that; otherwise
every byte is copied. A hard link must never be written through, because that would change post.

The expected contents of a new file are post's bytes with the patches applied. They are written in
chunks of PIECE_BYTES; each chunk is read back from the file, compared with the expected bytes, and
hashed.
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
# Without regular flushes, the disk only reads during the loop; the final fsync writes gigabytes.
FLUSH_BYTES = 1 << 26
CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP)
FICLONE = 0x40049409  # from linux/fs.h


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """A finished shard; `sha256` is None for a hard link, because its bytes were not read."""

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
    """Open file descriptors; every read and write passes an explicit offset."""

    source: int
    spool: int
    target: int


def write_shards(post: Checkpoint, edits: Edits, work: Path) -> list[WrittenShard]:
    """Link or write every shard of the restored checkpoint into `work`; verify the written ones.

    Returns:
        One record per shard, in post's order.

    Raises:
        StageFailedError: a byte that was read back differs from the expected one, or a shard of
            post was changed after its header was read.
        OSError: the disk is full, or it cannot be read or written.
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
    """Check that every edited tensor in the finished shards has the hash of the computed tensor.

    Raises:
        StageFailedError: the hash of a tensor differs.
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
    """Return the total size, in bytes, of the shards that must be copied into `work`.

    These are the shards with edits and the shards on another device than `work`.
    """
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
    """Write the target, read it back, compare it with the expected bytes, and return its sha256.

    `background` has two single-threaded executors: the first hashes finished chunks, the second
    flushes them to disk, both while the next chunks are processed.
    """
    hasher, flusher = background
    flushed = _finished_future()
    cloned = _clone_extents(files)
    digest = hashlib.sha256()
    # Each buffer is paired with the future of its last hash; it is reused only after that is done.
    buffers = deque((bytearray(PIECE_BYTES), _finished_future()) for _ in range(BUFFERS))
    expected = bytearray(PIECE_BYTES)
    for start in range(0, num_bytes, PIECE_BYTES):
        length = min(PIECE_BYTES, num_bytes - start)
        actual, hashed = buffers.popleft()
        hashed.result()
        for buffer in (expected, actual):
            del buffer[length:]  # the last chunk is shorter
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
    """Share the source's extents with the target (XFS, btrfs); return False if impossible."""
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
    """Yield the patches that overlap [start, end), each clipped to that range."""
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
