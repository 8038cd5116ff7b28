"""metrics.jsonl, the record of a run: one line a step, cut back to where a run is resumed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self


class MetricsFile:
    """Appends lines; the file always ends after a whole one.

    Args:
        path: created if it is not there.
        keep_steps: lines of later steps are removed, and a line that was torn.
    """

    def __init__(self, path: Path, *, keep_steps: int) -> None:
        path.touch()
        self._file = path.open("r+b")
        end = 0
        for line in self._file:
            if _step(line) > keep_steps:
                break
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line."""
        text = json.dumps(line, allow_nan=False)
        self._file.write(text.encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on disk."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _step(line: bytes) -> float:
    """Return the step of a line; infinity for what a crash has left of one."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except ValueError:
        return math.inf


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
