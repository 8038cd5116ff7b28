"""Publish a folder atomically: it appears under its final name complete, or not at all.

Files are written into a hidden folder next to the final one. All files are on disk before the
manifest is written, and the manifest is on disk before the hidden folder is renamed. A killed
attempt leaves the hidden folder and a lease, which the next attempt removes.
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
    """Return the manifest of a complete folder, with the current time as its end time.

    Args:
        folder: a folder that contains all files of the artifact.
        kind: the kind of artifact.
        parents: the artifacts and checkpoints from which it was made.
        provenance: the provenance that was collected at the start.
        files: the entries of its files if they are known; if None, every file is hashed.

    Raises:
        MissingEnvironmentError: a file cannot be read.
    """
    return Manifest(
        kind=kind,
        parents=tuple(parents),
        files=hashed_entries(folder) if files is None else tuple(files),
        provenance=ended_now(provenance),
    )


class Work:
    """An unfinished artifact; the caller writes its files into `folder` and then calls `finish`."""

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
        """Wait until all files are on disk, write the manifest, and rename the folder to `final`.

        The arguments are those of `manifest_of`.

        Raises:
            StageFailedError: the folder does not match `files`, or another process took over the
                lease.
            UserError: the final folder was created meanwhile.
        """
        manifest = manifest_of(self.folder, kind, parents, provenance, files)
        if findings := compare_sizes(self.folder, manifest):
            raise StageFailedError(
                f"{self.final}: not published, since it does not match its manifest: "
                + "; ".join(f"{finding.path} {finding.problem}" for finding in findings)
            )
        for entry in manifest.files:
            # A file without a SHA-256 is a hard link to an input. It may be very large, and another
            # program wrote it, so it is not synced.
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
    """Create a working folder that becomes `final` when the block calls `finish`.

    If the block ends in any other way, the working folder is removed. `kept` is the part of a write
    error that states which results are kept.

    Raises:
        UserError: `final` exists, or is not a valid folder name; nothing was written.
        BusyError: another process is writing `final`.
        MissingEnvironmentError: permission to write is missing, or the file system is read-only.
        StageFailedError: the disk is full, or another process took over the lease.
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
        # The folder is renamed first: if its process is alive after all, it then fails to publish,
        # instead of publishing a partly removed folder.
        discarded = new_working_path(final)
        leftover.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)
        log.info("removed %s, left by a killed attempt", leftover)
