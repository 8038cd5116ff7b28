"""A JSON Lines file with one line per step, truncated when a run resumes from an earlier step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from amnesia_bench.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FilePrefix:
    """The length in bytes and the hash of the first part of a file."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not 0 <= self.bytes < 1 << 63:
            raise ValueError(f"a file cannot have {self.bytes:.3g} bytes")


EMPTY_PREFIX = FilePrefix(bytes=0, sha256=hashlib.sha256().hexdigest())


class MetricsFile:
    """Appends one line per step to a file, after truncating it to a known prefix.

    Args:
        path: the path of the file, which is created if `keep` is empty.
        keep: the prefix to keep. The rest is removed: lines of steps that will be repeated, and
            possibly an incomplete last line.

    Raises:
        UserError: the file does not begin with this prefix.
    """

    def __init__(self, path: Path, *, keep: FilePrefix = EMPTY_PREFIX) -> None:
        if keep == EMPTY_PREFIX:
            path.touch()
        self._path = path
        self._digest = hashlib.sha256()
        self._bytes = keep.bytes
        self._prefixes: dict[int, FilePrefix] = {}
        try:
            self._file = path.open("r+b")
        except FileNotFoundError as error:
            raise _damaged(path, keep, "is missing") from error
        try:
            kept = self._file.read(keep.bytes)
            self._digest.update(kept)
            if len(kept) < keep.bytes:
                raise _damaged(path, keep, f"now has {len(kept)} bytes")
            if self._digest.hexdigest() != keep.sha256:
                raise _damaged(path, keep, "has other contents")
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(keep.bytes)
        self._file.seek(keep.bytes)

    def append(self, line: Mapping[str, Any]) -> None:
        """Append one line, whose key `step` must be the number of the step."""
        text = json.dumps(line, allow_nan=False).encode() + b"\n"
        self._file.write(text)
        self._file.flush()
        self._digest.update(text)
        self._bytes += len(text)
        self._prefixes[line["step"]] = FilePrefix(
            bytes=self._bytes, sha256=self._digest.hexdigest()
        )

    def written(self, step: int) -> FilePrefix:
        """Wait until all lines are on disk, and return the prefix up to and including `step`.

        Prefixes of earlier steps are discarded.
        """
        os.fsync(self._file.fileno())
        self._prefixes = {
            after: prefix for after, prefix in self._prefixes.items() if after >= step
        }
        return self._prefixes[step]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _damaged(path: Path, keep: FilePrefix, how: str) -> UserError:
    return UserError(
        f"{path}: was changed since the last checkpoint, when it had {keep.bytes} bytes: it {how}",
        hint="Restore the file. If only its last lines were changed, the previous checkpoint may "
        "still fit: remove the newest folder in checkpoints/. Or choose another --out.",
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the parsed lines of a metrics file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
