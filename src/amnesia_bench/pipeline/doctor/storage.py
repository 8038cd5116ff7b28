"""Examine the store's file system: space, renames, links, leases, and its clock."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from amnesia_bench.errors import BusyError
from amnesia_bench.pipeline.doctor.result import HealthCheck, broken, lacking, ok
from amnesia_bench.store.files import nearest_existing
from amnesia_bench.store.layout import new_working_path
from amnesia_bench.store.lease import holding_lease

_MIN_FREE_BYTES = 10_000_000_000
# Leases tolerate any skew, but times in logs and of SLURM's jobs do not.
_MAX_SKEW_SECONDS = 60.0
_NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.glusterfs", "cifs", "wekafs")
_ELSEWHERE = "Choose another folder: export AMNESIA_STORE=DIR"


def storage_checks(store: Path) -> Iterator[HealthCheck]:
    """Yield checks of the folder of a store, or of the nearest folder above that exists."""
    existing = nearest_existing(store)
    if not existing.is_dir():
        yield broken("store", f"{existing}: is a file", _ELSEWHERE)
        return
    # A store may belong to several users, each of whom made some of its folders.
    inner = existing.iterdir() if existing == store and os.access(existing, os.R_OK) else ()
    for folder in (existing, *filter(Path.is_dir, sorted(inner))):
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            yield broken("store", f"{folder}: no permission to read or write", _ELSEWHERE)
            return
    kind = _file_system(existing)
    shared = "shared by machines" if kind in _NETWORK else "this machine only, unless it is shared"
    yield ok("store", f"{store}: {kind} ({shared})")
    free = shutil.disk_usage(existing).free
    text = f"{free / 1e9:,.0f} GB free"
    if free < _MIN_FREE_BYTES:
        yield broken("disk", text, f"Free some space in {existing}, or: {_ELSEWHERE}")
    else:
        yield ok("disk", f"{text}; `amnesia plan` estimates what an experiment needs")
    work = new_working_path(existing / "doctor")
    work.mkdir()
    try:
        yield from _operations(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _operations(work: Path) -> Iterator[HealthCheck]:
    file = work / "file"
    file.write_text("written")
    began = time.time()
    os.utime(file)
    skew = file.stat().st_mtime - began
    if abs(skew) > _MAX_SKEW_SECONDS:
        text = f"the file system's clock differs by {skew:+.0f} s from this machine's"
        yield broken("clock", text, "Synchronise the clocks: systemctl restart chronyd")
    else:
        yield ok("clock", "this machine and the file system agree")
    (work / "folder").mkdir()
    (work / "folder").rename(work / "renamed")
    with holding_lease(work / "artifact"):
        try:
            with holding_lease(work / "artifact"):
                yield broken("leases", "two processes can hold the same lease", _ELSEWHERE)
                return
        except BusyError:
            yield ok("leases", "exclusive files, renames and leases work")
    try:
        os.link(file, work / "link")
    except OSError as error:
        yield lacking("hard links", f"not possible ({error.strerror}); shards are copied")
    else:
        yield ok("hard links", "possible: repaired and adopted checkpoints share shards")


def _file_system(path: Path) -> str:
    """Return the type of the file system that contains a path."""
    best, kind = "", "unknown"
    target = f"{path.resolve()}/"
    for line in Path("/proc/mounts").read_text(errors="replace").splitlines():
        mount, name = line.split()[1:3]
        prefix = mount.replace("\\040", " ").rstrip("/") + "/"
        if target.startswith(prefix) and len(prefix) >= len(best):
            best, kind = prefix, name
    return kind
