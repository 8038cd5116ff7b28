"""What a tracking service receives: one run with its config, values, tables and artifact.

The store and the reports are the records of an experiment. A tracked run is a copy of a part of
them, so services can be filled at any time, and again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_ID_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class RunHeader:
    """The identity and config of a run; a second run with the same `run_id` continues the first.

    `group` is the model, and `job_type` the kind of stage. `entity` is a user or team of W&B; None
    is the default entity of the account.
    """

    project: str
    run_id: str
    name: str
    group: str
    job_type: str
    config: Mapping[str, Any]
    entity: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrackedTable:
    """A table; every row has one value per column."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class TrackedFile:
    """A file of an artifact; `digest` is the hash in the artifact's manifest."""

    path: str
    bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class TrackedArtifact:
    """A folder that a run wrote. Services receive references to its files, never their contents.

    `inputs` are the names of the artifacts from which it was made.
    """

    name: str
    kind: str
    folder: Path
    files: tuple[TrackedFile, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A finished run.

    Attributes:
        header: its identity and config.
        summary: its final values.
        details: further values of the summary: for each value its n and its interval.
        history: pairs of a step and the values at that step, in ascending order.
        step_name: what a step is: `step`, an optimizer step, or `context_tokens`, a length.
        tables: its tables.
        artifact: the folder that it wrote.
    """

    header: RunHeader
    summary: Mapping[str, float]
    details: Mapping[str, float] = field(default_factory=dict)
    history: tuple[tuple[int, Mapping[str, float]], ...] = ()
    step_name: str = "step"
    tables: tuple[TrackedTable, ...] = ()
    artifact: TrackedArtifact | None = None

    @property
    def sha256(self) -> str:
        """A hash of everything that a service receives."""
        return _sha256(asdict(self))

    @property
    def lines_sha256(self) -> str:
        """A hash of the history and the tables, to which W&B can only append."""
        return _sha256([self.step_name, self.history, [asdict(table) for table in self.tables]])


def _sha256(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def run_id_of(folder: Path) -> str:
    """Return the run id of the stage that writes an artifact's folder.

    Stages with the same id in different stores are different runs.
    """
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:_ID_DIGITS]
