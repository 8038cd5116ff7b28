"""metrics.jsonl, the record of a run: one line a step, cut back to where a run is resumed."""

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
class Written:
    """The beginning of a file: how long it is, and the hash of its bytes."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not 0 <= self.bytes < 1 << 63:
            raise ValueError(f"a file of {self.bytes:.3g} bytes")


NOTHING = Written(bytes=0, sha256=hashlib.sha256().hexdigest())


class MetricsFile:
    """Appends lines; the file always ends after a whole one.

    Args:
        path: created if nothing is to be kept.
        keep: the beginning that counts. What is behind it is cut off: lines of steps that are to
            be done again, and a line that was torn.

    Raises:
        UserError: the file does not begin like that.
    """

    def __init__(self, path: Path, *, keep: Written = NOTHING) -> None:
        if keep == NOTHING:
            path.touch()
        self._path = path
        self._digest = hashlib.sha256()
        self._bytes = keep.bytes
        self._after: dict[int, Written] = {}
        try:
            self._file = path.open("r+b")
        except FileNotFoundError as error:
            raise _damaged(path, keep, "is not there") from error
        try:
            kept = self._file.read(keep.bytes)
            self._digest.update(kept)
            if len(kept) < keep.bytes:
                raise _damaged(path, keep, f"has {len(kept)} bytes left")
            if self._digest.hexdigest() != keep.sha256:
                raise _damaged(path, keep, "has other contents")
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(keep.bytes)
        self._file.seek(keep.bytes)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line, with the `step` that it is about."""
        text = json.dumps(line, allow_nan=False).encode() + b"\n"
        self._file.write(text)
        self._file.flush()
        self._digest.update(text)
        self._bytes += len(text)
        self._after[line["step"]] = Written(bytes=self._bytes, sha256=self._digest.hexdigest())

    def written(self, step: int) -> Written:
        """Wait until all lines are on disk, and return what was written up to a step.

        Steps before it cannot be asked for any more.
        """
        os.fsync(self._file.fileno())
        self._after = {each: kept for each, kept in self._after.items() if each >= step}
        return self._after[step]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _damaged(path: Path, keep: Written, how: str) -> UserError:
    return UserError(
        f"{path}: was changed since the last save: of the {keep.bytes} bytes written by then it "
        f"{how}",
        hint="Put the file back. If only its last lines were changed, the save before the last may "
        "still fit: remove the newest folder of checkpoints/. Or choose another --out.",
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
