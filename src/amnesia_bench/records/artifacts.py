"""The manifest of a finished artifact: its files, its parents and its provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Self

from amnesia_bench.errors import NewerVersionError
from amnesia_bench.records import codec

SCHEMA_VERSION = 2  # 1 had no `Provenance.training_seconds`


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of an artifact.

    `path` is relative to the artifact's folder, with forward slashes. `sha256` is None for a file
    that is a hard link to an input file and was never read. Only the size of such a file and its
    `mtime_ns` (modification time in nanoseconds since the epoch) can be checked.
    """

    path: str
    bytes: int
    sha256: str | None
    mtime_ns: int

    def __post_init__(self) -> None:
        pure = PurePosixPath(self.path)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != self.path or self.path == ".":
            raise ValueError(f"{self.path!r} is not a path inside the artifact's folder")


@dataclass(frozen=True, kw_only=True)
class CheckpointIdentity:
    """The identity of an input checkpoint: its path as typed, and its config and header hashes.

    `headers_sha256` maps the name of each weight file to the hash of its header.
    """

    path: str
    config_sha256: str
    headers_sha256: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Parent:
    """An artifact or checkpoint from which this artifact was made.

    `role` is its role in the computation (`pre`, `post`, ...), `location` its path or id, and
    `identity` a hash of its contents, prefixed with the hash algorithm (`sha256:...`).
    """

    role: str
    location: str
    identity: str


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine on which an artifact was made."""

    platform: str
    cpu: str
    cpu_cores: int
    memory_bytes: int
    gpus: tuple[str, ...]
    gpu_driver: str | None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How an artifact was made.

    `commit`, `dirty` and `dirty_diff_sha256` are None if the package is not tracked in a git work
    tree. `started` and `ended` are UTC times in ISO 8601; `ended` is None until the artifact is
    complete. They are those of the last process if a run was resumed. `training_seconds` is the
    time of all steps of a training, also in earlier processes; None for other artifacts. Secrets in
    `command` are masked.
    """

    tool_version: str
    commit: str | None
    dirty: bool | None
    dirty_diff_sha256: str | None
    python: str
    packages: Mapping[str, str]
    hardware: Hardware
    seeds: Mapping[str, int]
    started: str
    ended: str | None
    command: tuple[str, ...]
    training_seconds: float | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took to make the artifact; None until it is complete."""
        if self.training_seconds is not None:
            return self.training_seconds
        if self.ended is None:
            return None
        started, ended = map(datetime.fromisoformat, (self.started, self.ended))
        return (ended - started).total_seconds()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of an artifact, written as its last file.

    A folder without a manifest is not a finished artifact.
    """

    schema_version: int = SCHEMA_VERSION
    kind: str
    parents: tuple[Parent, ...]
    files: tuple[FileEntry, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        paths = [entry.path for entry in self.files]
        if len(set(paths)) != len(paths):
            duplicates = sorted({path for path in paths if paths.count(path) > 1})
            raise ValueError(f"files listed twice: {', '.join(duplicates)}")

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values."""
        return codec.to_json(self)  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, data: object, where: str) -> Self:
        """Build a manifest from parsed JSON; `where` is the name of the file for error messages.

        Raises:
            UserError: the file is not a manifest.
            NewerVersionError: a newer version of amnesia-bench wrote the file, in a schema that
                this version cannot read.
        """
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise NewerVersionError(
                f"{where}: manifest of schema {version}, this version reads {SCHEMA_VERSION}",
                hint="Read it with the newer version of amnesia-bench that wrote it.",
            )
        if version == 1 and isinstance(data, dict) and isinstance(data.get("provenance"), dict):
            data = {**data, "provenance": {"training_seconds": None} | data["provenance"]}
        return codec.from_json(cls, data, where)
