"""All or nothing: a folder appears under its final name complete, or not at all.

Work happens in a hidden sibling. Every file is on disk before the manifest is written, the
manifest before the rename. A killed attempt leaves a hidden folder and a lease, which the next
attempt removes.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.records.artifacts import FileEntry, Manifest, Parent, Provenance
from amnesia_bench.store.files import (
    explaining_write_errors,
    make_folder,
    sync_file,
    sync_folder,
    write_json,
)
from amnesia_bench.store.hashing import compare_sizes, hashed_entries
from amnesia_bench.store.layout import MANIFEST, check_final, leftover_paths, new_working_path
from amnesia_bench.store.lease import Lease, holding_lease
from amnesia_bench.store.provenance import ended_now

log = logging.getLogger(__name__)


def manifest_of(
    folder: Path,
    kind: str,
    parents: Iterable[Parent],
    provenance: Provenance,
    files: Sequence[FileEntry] | None = None,
) -> Manifest:
    """Return the manifest of a folder whose work ends now.

    Args:
        folder: all of its files are in it.
        kind: what sort of artifact it is.
        parents: what it was made from.
        provenance: what was collected when the work started.
        files: its files, where they need not be read for it; otherwise each one is hashed.

    Raises:
        MissingEnvironmentError: a file may not be read.
    """
    return Manifest(
        kind=kind,
        parents=tuple(parents),
        files=hashed_entries(folder) if files is None else tuple(files),
        provenance=ended_now(provenance),
    )


class Work:
    """An artifact in the making; write its files into `folder`, then call `finish`."""

    def __init__(self, final: Path, lease: Lease) -> None:
        self.final = final
        self.folder = new_working_path(final)
        self.finished = False
        self._lease = lease

    def finish(
        self,
        kind: str,
        parents: Iterable[Parent],
        provenance: Provenance,
        files: Sequence[FileEntry] | None = None,
    ) -> None:
        """Make the folder durable, write its manifest, and give it its final name.

        The arguments are those of `manifest_of`.

        Raises:
            StageFailedError: the folder does not hold what the manifest says, or another
                process took over.
        """
        manifest = manifest_of(self.folder, kind, parents, provenance, files)
        if findings := compare_sizes(self.folder, manifest):
            raise StageFailedError(
                f"{self.final}: not published, since it is not what its manifest says: "
                + "; ".join(f"{finding.path} {finding.problem}" for finding in findings)
            )
        for entry in manifest.files:
            # A hardlinked input is as durable as its owner made it, and may be very large.
            if entry.sha256 is not None:
                sync_file(self.folder / entry.path)
        write_json(self.folder / MANIFEST, manifest.to_json())
        for folder, _, _ in os.walk(self.folder):
            sync_folder(Path(folder))
        self._lease.check()
        _refuse_existing(self.final)
        self.folder.rename(self.final)
        self.finished = True
        sync_folder(self.final.parent)


@contextmanager
def publishing(final: Path, kept: str = "nothing of it was kept") -> Iterator[Work]:
    """Open a working folder that becomes `final` when `finish` is called inside the block.

    The working folder is removed if the block ends in any other way. `kept` says in the message of
    a failed write what has become of the work so far.

    Raises:
        UserError: `final` exists, or cannot be the name of a folder; nothing was written.
        BusyError: another process is writing it.
        MissingEnvironmentError: no permission, or a read-only file system.
        StageFailedError: the disk is full, or the lease was lost.
    """
    check_final(final)
    _refuse_existing(final)
    with explaining_write_errors(final, kept):
        make_folder(final.parent)
        with holding_lease(final) as lease:
            _refuse_existing(final)
            _remove_leftovers(final)
            work = Work(final, lease)
            try:
                work.folder.mkdir()
                yield work
                if not work.finished:
                    raise RuntimeError(f"{final}: the block ended without finish()")
            finally:
                shutil.rmtree(work.folder, ignore_errors=True)


def _refuse_existing(final: Path) -> None:
    if os.path.lexists(final):
        raise UserError(
            f"{final}: already exists; nothing was written",
            hint="Choose another output folder, or remove this one.",
        )


def _remove_leftovers(final: Path) -> None:
    for leftover in leftover_paths(final):
        # Renamed first: should its owner live after all, it fails to publish instead of
        # publishing what is half removed.
        discarded = new_working_path(final)
        leftover.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)
        log.info("removed %s, left by an attempt that died", leftover)
