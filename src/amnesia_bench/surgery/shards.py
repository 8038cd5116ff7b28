"""Write the shards of a restored checkpoint, and prove them against what they should be.

A shard without edits is hardlinked. A shard with edits is copied byte by byte (shared extents
where the filesystem has them: copy_file_range asks for that itself) and patched, so header and
layout stay post's. Never write through a hardlink: it would change post.

While one thread copies, another reads the written segments again, holds every byte against post
overlaid with the patches, and hashes them.
"""

from __future__ import annotations

import errno
import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import StageFailedError
from amnesia_bench.surgery.edits import Edits, Patch

SEGMENT_BYTES = 32 << 20
PIECE_BYTES = 4 << 20
END = -1  # closes the queue of written offsets
CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP)
CANNOT_COPY_IN_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """One finished shard. `sha256` is None for a hardlink, whose bytes were not read."""

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
    """Open file descriptors; all reads and writes give their own position."""

    source: int
    spool: int
    target: int


def write_shards(sources: Iterable[Path], edits: Edits, work: Path) -> list[WrittenShard]:
    """Write every shard of post into `work`, repaired and proven, in the order given.

    Raises:
        StageFailedError: a written byte is not what the plan says.
        OSError: the disk is full, or not to be read or written.
    """
    jobs = [
        _Job(
            source=source,
            target=work / source.name,
            patches=edits.patches.get(source.name, ()),
        )
        for source in sources
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(lambda job: _write_shard(job, edits.spool), jobs))


def bytes_to_copy(sources: Iterable[Path], edits: Edits, work: Path) -> int:
    """Return how many bytes the disk of `work` must take: edited shards, and all across devices."""
    device = work.stat().st_dev
    sizes = (
        source.stat().st_size
        for source in sources
        if edits.patches.get(source.name) or source.stat().st_dev != device
    )
    return sum(sizes)


def _write_shard(job: _Job, spool: Path) -> WrittenShard:
    num_bytes = job.source.stat().st_size
    if not job.patches and _hardlinked(job):
        return WrittenShard(name=job.target.name, num_bytes=num_bytes, sha256=None)
    with ExitStack() as stack:
        files = _Files(
            source=_open(stack, job.source, os.O_RDONLY),
            spool=_open(stack, spool, os.O_RDONLY),
            target=_open(stack, job.target, os.O_RDWR | os.O_CREAT | os.O_EXCL),
        )
        written: SimpleQueue[int] = SimpleQueue()
        copier = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        copying = copier.submit(_copy_and_patch, files, job.patches, num_bytes, written)
        sha256 = _prove(files, job, written)
        copying.result()
    return WrittenShard(name=job.target.name, num_bytes=num_bytes, sha256=sha256)


def _open(stack: ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, 0o644)
    stack.callback(os.close, descriptor)
    return descriptor


def _hardlinked(job: _Job) -> bool:
    try:
        os.link(job.source.resolve(), job.target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        return False
    return True


def _copy_and_patch(
    files: _Files, patches: tuple[Patch, ...], num_bytes: int, written: SimpleQueue[int]
) -> None:
    """Write the target, announcing each offset up to which it is final; END closes the queue."""
    try:
        for start in range(0, num_bytes, SEGMENT_BYTES):
            end = min(start + SEGMENT_BYTES, num_bytes)
            _copy_range(files.source, start, files.target, start, end - start)
            for part in _overlap(patches, start, end):
                _copy_range(files.spool, part.spool_start, files.target, part.start, part.length)
            written.put(end)
        os.fsync(files.target)
    finally:
        written.put(END)


def _prove(files: _Files, job: _Job, written: SimpleQueue[int]) -> str:
    """Return the sha256 of the target, read again and found equal to post plus patches."""
    digest = hashlib.sha256()
    expected, actual = (np.empty(PIECE_BYTES, np.uint8) for _ in range(2))
    position = 0
    while (end := written.get()) != END:
        while position < end:
            stop = min(position + PIECE_BYTES, end)
            want, got = expected[: stop - position], actual[: stop - position]
            _read(files.source, want, position)
            for part in _overlap(job.patches, position, stop):
                offset = part.start - position
                _read(files.spool, want[offset : offset + part.length], part.spool_start)
            _read(files.target, got, position)
            if not np.array_equal(want, got):
                wrong = position + int(np.flatnonzero(want != got)[0])
                raise StageFailedError(
                    f"{job.target.name}: byte {wrong:,} was read back different from what was "
                    "written.",
                    hint="Do not trust this disk or this memory; nothing was published.",
                )
            digest.update(got.data)
            position = stop
    return digest.hexdigest()


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


def _copy_range(
    source: int, source_start: int, target: int, target_start: int, length: int
) -> None:
    done = 0
    while done < length:
        try:
            copied = os.copy_file_range(
                source, target, length - done, source_start + done, target_start + done
            )
        except (AttributeError, OSError) as error:  # AttributeError: macOS has no such call
            if isinstance(error, OSError) and error.errno not in CANNOT_COPY_IN_KERNEL:
                raise
            piece = os.pread(source, min(PIECE_BYTES, length - done), source_start + done)
            copied = os.pwrite(target, piece, target_start + done)
        if not copied:
            raise StageFailedError("A shard became shorter while it was being copied.")
        done += copied


def _read(descriptor: int, into: NDArray[np.uint8], start: int) -> None:
    done = 0
    while done < into.size:
        count = os.preadv(descriptor, [into.data[done:]], start + done)
        if not count:
            raise StageFailedError("A shard became shorter while it was being read back.")
        done += count
