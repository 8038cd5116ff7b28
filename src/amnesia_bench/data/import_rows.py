"""Copy a file of rows or texts into a folder with a manifest, so that stages can depend on it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.hub.repository import check_space
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.requests.data import ImportRowsRequest
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing


def import_rows(request: ImportRowsRequest, out: Path) -> None:
    """Copy the file of a request to `out`/`request.copy_name`, atomically.

    Raises:
        UserError: the file does not exist, its contents are not those of the request, or `out`
            exists.
        StageFailedError: the file changes while it is copied, or the disk is full.
    """
    file = request.file
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    digest = sha256_of(file)
    if request.sha256 not in (None, digest):
        raise UserError(
            f"{file}: has the sha256 {digest}, but {request.sha256} was requested",
            hint="The file was changed since the command was planned: run the command again.",
        )
    provenance = collect_provenance(sys.argv, seeds={})
    with publishing(out) as work:
        check_space(file.stat().st_size, work.folder, str(out.parent), "Free some space.")
        copy = work.folder / request.copy_name
        shutil.copyfile(file, copy)
        if sha256_of(copy) != digest:
            raise StageFailedError(f"{file}: changed while it was copied", hint="Run it again.")
        parent = Parent(role="input", location=str(file), identity=f"sha256:{digest}")
        work.finish("rows", [parent], provenance)
