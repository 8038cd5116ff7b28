"""Read artifact files for a report; each is read once and checked against its published hash."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Manifest
from amnesia_bench.store.checksums import check_checksum
from amnesia_bench.store.hashing import read_manifest, sha256_of
from amnesia_bench.store.json_rows import read_records
from amnesia_bench.store.layout import MANIFEST

Record = TypeVar("Record")
_HINT = "The file is cut off: remove its folder and run the evaluation again."


class ArtifactFiles:
    """Reads and caches manifests and records.

    Use a new object for each report, since files may be rewritten between two reports.
    """

    def __init__(self) -> None:
        self._manifest = cache(read_manifest)
        self._records: dict[Path, tuple[Any, ...]] = {}

    def manifest(self, folder: Path) -> Manifest:
        """Return the manifest of a finished folder."""
        return self._manifest(folder)

    def records(self, kind: type[Record], path: Path, artifact: Path | None) -> tuple[Record, ...]:
        """Return the records of a JSON-lines file; an empty tuple if the file does not exist.

        Raises:
            UserError: a line is cut off, or the file was changed since it was published.
        """
        if not path.is_file():
            return ()
        if path not in self._records:
            self.check_hash(path, artifact)
            self._records[path] = tuple(read_records(kind, path, _HINT))
        return self._records[path]

    def check_hash(self, path: Path, artifact: Path | None) -> None:
        """Check a file's hash against the manifest of its artifact.

        If `artifact` is None, check it against the checksum file in the same folder instead.

        Raises:
            UserError: the file was changed since it was published.
        """
        if artifact is None:
            check_checksum(path, "Score the answers again, or restore the original file.")
            return
        name = path.relative_to(artifact).as_posix()
        for entry in self.manifest(artifact).files:
            if entry.path == name and entry.sha256 not in (None, sha256_of(path)):
                raise UserError(
                    f"{path}: it was changed since it was published (the sha256 differs from "
                    f"{artifact / MANIFEST})",
                    hint="Remove that folder and run its stage again.",
                )
