"""The files of artifacts as a report reads them: each once, and as it was published."""

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
_HINT = "It was cut off: remove its folder and run the evaluation again."


class ArtifactFiles:
    """Reads manifests and records; what was read is kept as long as this object.

    A report makes one: what lies on disk may be made again before the next.
    """

    def __init__(self) -> None:
        self._manifest = cache(read_manifest)
        self._records: dict[Path, tuple[Any, ...]] = {}

    def manifest(self, folder: Path) -> Manifest:
        """Return the manifest of a finished folder."""
        return self._manifest(folder)

    def records(self, kind: type[Record], path: Path, artifact: Path | None) -> tuple[Record, ...]:
        """Return the records in a file of JSON lines; none where there is no such file.

        Raises:
            UserError: a line is cut off, or the file is not what was published.
        """
        if not path.is_file():
            return ()
        if path not in self._records:
            self.check_hash(path, artifact)
            self._records[path] = tuple(read_records(kind, path, _HINT))
        return self._records[path]

    def check_hash(self, path: Path, artifact: Path | None) -> None:
        """Compare a file with the manifest of its artifact, or with the checksums next to it.

        Raises:
            UserError: it is not what was published.
        """
        if artifact is None:
            check_checksum(path, "Score it again, or take the file as it was.")
            return
        name = path.relative_to(artifact).as_posix()
        for entry in self.manifest(artifact).files:
            if entry.path == name and entry.sha256 not in (None, sha256_of(path)):
                raise UserError(
                    f"{path}: is not what {artifact / MANIFEST} says: it was changed since",
                    hint="Remove that folder and run its stage again.",
                )
