"""Hashes of files, and whether a finished artifact still is what its manifest says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import FileEntry, Manifest
from amnesia_bench.store.files import read_json
from amnesia_bench.store.layout import MANIFEST

_READ_BYTES = 4 << 20
_MAX_READERS = 4


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One way in which a folder differs from its manifest."""

    path: str
    problem: str


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hex; other threads run while it reads."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def file_entry(folder: Path, path: str, *, sha256: str | None) -> FileEntry:
    """Describe a file of a folder as it is on disk now."""
    stat = (folder / path).stat()
    return FileEntry(path=path, bytes=stat.st_size, sha256=sha256, mtime_ns=stat.st_mtime_ns)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a finished artifact.

    Raises:
        UserError: the folder is not a finished artifact, or its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder}: not a finished artifact (it has no {MANIFEST})",
            hint="Give a folder that amnesia wrote.",
        )
    return Manifest.from_json(read_json(path), str(path))


def verify_manifest(folder: Path) -> list[Finding]:
    """Compare every file of an artifact with its manifest; an empty list means intact.

    Raises:
        UserError: the folder is not a finished artifact, or its manifest is damaged.
    """
    manifest = read_manifest(folder)
    findings = compare_sizes(folder, manifest)
    broken = {finding.path for finding in findings}
    entries = [entry for entry in manifest.files if entry.path not in broken]
    with ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1)) as readers:
        contents = readers.map(lambda entry: _compare_contents(folder, entry), entries)
        return sorted(
            findings + [finding for finding in contents if finding is not None],
            key=lambda finding: finding.path,
        )


def compare_sizes(folder: Path, manifest: Manifest) -> list[Finding]:
    """Compare names, kinds and sizes of a folder's files with a manifest, without reading them."""
    expected = {entry.path: entry.bytes for entry in manifest.files}
    found = dict(_walk(folder))
    findings = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            problem = "is missing"
        elif path not in expected:
            problem = "is not in the manifest"
        elif found[path] is None:
            problem = "is not a regular file"
        elif found[path] != expected[path]:
            problem = f"has {found[path]} bytes, the manifest says {expected[path]}"
        else:
            continue
        findings.append(Finding(path=path, problem=problem))
    return findings


def compare_changed(folder: Path, manifest: Manifest) -> list[Finding]:
    """Compare a folder with its manifest, reading only files that were touched since."""
    findings = compare_sizes(folder, manifest)
    broken = {finding.path for finding in findings}
    for entry in manifest.files:
        if entry.path in broken or (folder / entry.path).stat().st_mtime_ns == entry.mtime_ns:
            continue
        finding = _compare_contents(folder, entry)
        findings += [] if finding is None else [finding]
    return findings


def hashed_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Describe every file of a folder but its manifest, with its hash."""
    names = sorted(path for path, _ in _walk(folder))
    return tuple(file_entry(folder, name, sha256=sha256_of(folder / name)) for name in names)


def _compare_contents(folder: Path, entry: FileEntry) -> Finding | None:
    path = folder / entry.path
    try:
        if entry.sha256 is None:
            changed = path.stat().st_mtime_ns != entry.mtime_ns
            problem = "was changed or copied since (other mtime, and no sha256 to prove it by)"
        else:
            changed = sha256_of(path) != entry.sha256
            problem = "has other contents (sha256 differs)"
    except OSError as error:
        changed, problem = True, f"cannot be read ({error.strerror})"
    return Finding(path=entry.path, problem=problem) if changed else None


def _walk(folder: Path) -> Iterator[tuple[str, int | None]]:
    """Yield every file but the manifest: its path, and its size or None if it is no plain file."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in names + links:
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if relative != MANIFEST:
                plain = path.is_file() and not path.is_symlink()
                yield relative, path.stat().st_size if plain else None
