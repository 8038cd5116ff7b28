"""Hash files, and compare a finished artifact with its manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.records.artifacts import FileEntry, Manifest
from amnesia_bench.store.files import read_json
from amnesia_bench.store.layout import MANIFEST

_MAX_READERS = 4
# Files up to this size are always hashed again, since an edit may have preserved their mtime.
_SMALL_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A difference between a folder and its manifest, or a path that cannot be read."""

    path: str
    problem: str
    unreadable: bool = False


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex; other Python threads can run meanwhile."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(folder: Path, path: str, *, sha256: str | None) -> FileEntry:
    """Return the manifest entry of a file, with its current size and mtime and the given hash."""
    stat = (folder / path).stat()
    return FileEntry(path=path, bytes=stat.st_size, sha256=sha256, mtime_ns=stat.st_mtime_ns)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a finished artifact.

    Raises:
        UserError: the folder is not a finished artifact, or its manifest is damaged.
        NewerVersionError: a newer version of this package wrote the manifest.
        MissingEnvironmentError: the folder cannot be read.
    """
    path = folder / MANIFEST
    if not is_finished(folder):
        raise UserError(
            f"{folder}: not a finished artifact (it has no {MANIFEST})",
            hint="Give a folder that amnesia wrote.",
        )
    return Manifest.from_json(read_json(path), str(path))


def is_finished(folder: Path) -> bool:
    """Return whether a folder is a finished artifact, which means that it has a manifest.

    Raises:
        MissingEnvironmentError: the folder cannot be read.
    """
    try:
        return (folder / MANIFEST).is_file()
    except OSError as error:
        raise MissingEnvironmentError(f"{folder}: cannot be read ({error.strerror})") from error


def content_sha256(manifest: Manifest) -> str:
    """Return a hash of an artifact's files that depends on neither its location nor its provenance.

    It covers the path, size and SHA-256 of every file; the mtime replaces a missing SHA-256.
    """
    files = sorted(
        [entry.path, entry.bytes, entry.mtime_ns if entry.sha256 is None else entry.sha256]
        for entry in manifest.files
    )
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def verify_manifest(folder: Path) -> list[Finding]:
    """Compare every file of an artifact with its manifest; return the differences, sorted by path.

    Raises:
        UserError: the folder is not a finished artifact, or its manifest is damaged.
    """
    manifest = read_manifest(folder)
    findings = compare_sizes(folder, manifest)
    entries = [entry for entry in manifest.files if not _covered(entry.path, findings)]
    with ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1)) as readers:
        contents = readers.map(lambda entry: _compare_contents(folder, entry), entries)
        return sorted(
            findings + [finding for finding in contents if finding is not None],
            key=lambda finding: finding.path,
        )


def compare_sizes(folder: Path, manifest: Manifest) -> list[Finding]:
    """Compare the names, types and sizes of a folder's files with a manifest, without hashing.

    Folders and files that cannot be read are also reported.
    """
    expected = {entry.path: entry.bytes for entry in manifest.files}
    findings: list[Finding] = []
    sizes = dict(_walk(folder, findings))
    unreadable = tuple(findings)
    for path in sorted(expected.keys() | sizes.keys()):
        if _covered(path, unreadable):
            continue
        if path not in sizes:
            problem = "is missing"
        elif path not in expected:
            problem = "is not in the manifest"
        elif sizes[path] is None:
            problem = "is not a regular file"
        elif sizes[path] != expected[path]:
            problem = f"has {sizes[path]} bytes, not the {expected[path]} in the manifest"
        else:
            continue
        findings.append(Finding(path=path, problem=problem))
    return findings


def compare_changed(folder: Path, manifest: Manifest) -> list[Finding]:
    """Compare a folder with its manifest, hashing only small files and those with another mtime."""
    findings = compare_sizes(folder, manifest)
    entries = [entry for entry in manifest.files if not _covered(entry.path, findings)]
    contents = (
        _compare_contents(folder, entry, touched_only=entry.bytes > _SMALL_BYTES)
        for entry in entries
    )
    return findings + [finding for finding in contents if finding is not None]


def hashed_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Hash every file of a folder except its manifest, and return the manifest entries.

    Raises:
        MissingEnvironmentError: a file cannot be read.
    """
    unreadable: list[Finding] = []
    # A process that was killed while writing the manifest may leave this file; the next process
    # replaces it.
    half_written = f".{MANIFEST}.new"
    names = sorted(path for path, _ in _walk(folder, unreadable) if path != half_written)
    for finding in unreadable:
        raise MissingEnvironmentError(f"{folder / finding.path} {finding.problem}")
    return tuple(file_entry(folder, name, sha256=sha256_of(folder / name)) for name in names)


def _compare_contents(
    folder: Path, entry: FileEntry, *, touched_only: bool = False
) -> Finding | None:
    path = folder / entry.path
    try:
        touched = path.stat().st_mtime_ns != entry.mtime_ns
        if entry.sha256 is None:
            changed = touched
            problem = "was changed or copied since (its mtime differs, and it has no sha256)"
        else:
            changed = (touched or not touched_only) and sha256_of(path) != entry.sha256
            problem = "has other contents (sha256 differs)"
    except OSError as error:
        return _unreadable(entry.path, error)
    return Finding(path=entry.path, problem=problem) if changed else None


def _walk(folder: Path, unreadable: list[Finding]) -> Iterator[tuple[str, int | None]]:
    """Yield (path, size) of every file but the manifest; size is None if the file is not regular.

    A finding for each path that cannot be read is appended to `unreadable`.
    """

    def relative(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    def report(error: OSError) -> None:
        unreadable.append(_unreadable(relative(Path(error.filename)), error))

    for parent, folders, names in os.walk(folder, onerror=report):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in names + links:
            path = Path(parent) / name
            if relative(path) == MANIFEST:
                continue
            try:
                regular = path.is_file() and not path.is_symlink()
                yield relative(path), path.stat().st_size if regular else None
            except OSError as error:
                unreadable.append(_unreadable(relative(path), error))


def _covered(path: str, findings: Sequence[Finding]) -> bool:
    """Return whether a finding is about this file or an unreadable folder that contains it."""
    return any(
        path == finding.path
        or (finding.unreadable and (finding.path == "." or path.startswith(f"{finding.path}/")))
        for finding in findings
    )


def _unreadable(path: str, error: OSError) -> Finding:
    return Finding(path=path, problem=f"cannot be read ({error.strerror})", unreadable=True)
