"""Read and write the state of stages, which is stored in these files of a store.

<store>/<kind>/<id>/manifest.json   hash of every file of the artifact; exists if the stage is done
<store>/stages/<id>/stage.json      spec of the stage; see `specs`
<store>/stages/<id>/inputs.json     content hash of each input when the stage began, by "kind/id"
<store>/stages/<id>/log.txt         output of all attempts
<store>/stages/<id>/failure.json    failure of the last attempt, if it failed
<store>/stages/<id>/restarts.json   restarts of a batch job without progress; see `restarts`
<store>/stages/<id>/starts          starts of a batch job that did not come to its worker
<store>/stages/<id>/slurm-JOB.out   output of a SLURM job
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from amnesia_bench.errors import (
    ExitCode,
    MissingEnvironmentError,
    NewerVersionError,
    StageFailedError,
    UserError,
)
from amnesia_bench.pipeline.specs import OlderStage, known_specs
from amnesia_bench.pipeline.stage import Stage, whole_of
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import FileEntry
from amnesia_bench.records.stages import StageFailure, StageSpec
from amnesia_bench.store.files import make_folder, read_json, replace_text
from amnesia_bench.store.hashing import (
    Finding,
    compare_changed,
    content_sha256,
    is_finished,
    read_manifest,
)
from amnesia_bench.store.layout import (
    MANIFEST,
    artifact_path,
    leftover_paths,
    new_working_path,
    resumable_path,
    stage_path,
    training_path,
)
from amnesia_bench.store.lease import current_holder, holding_lease

# Matches the path of a stage's folder (<store>/<kind>/<id>), or of a file in it, in a JSON record.
_STAGE_FOLDER = re.compile(rb'\A".*/([a-z]+/[A-Za-z0-9._=+-]+-[0-9a-f]{12}[/"])', re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_RECORD_BYTES = 1 << 20
AnyStage = Stage | StageSpec | OlderStage
INPUTS, LOG, FAILURE = "inputs.json", "log.txt", "failure.json"


class StageState(StrEnum):
    """The state of a stage; `STALE` means that an input has changed since the artifact was made."""

    CACHED = "cached"
    STALE = "stale"
    RUNNING = "running"
    FAILED = "failed"
    WAITING = "to run"


def now() -> str:
    """Return the current UTC time in the format of failure records (ISO 8601, in seconds)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def state_of(store: Path, kind: str, stage_id: str) -> StageState:
    """Return the state of a stage, without checking whether the files of its artifact are intact.

    A part of a stage is not needed any more, and counts as cached, once that stage is done.

    Raises:
        MissingEnvironmentError: the stage's folder cannot be read.
    """
    if is_merged(store, kind, stage_id):
        return StageState.CACHED
    if is_finished(artifact_path(store, kind, stage_id)):
        return StageState.STALE if changed_inputs(store, stage_id) else StageState.CACHED
    folder = stage_path(store, stage_id)
    if current_holder(folder) is not None:
        return StageState.RUNNING
    return StageState.FAILED if (folder / FAILURE).is_file() else StageState.WAITING


def is_merged(store: Path, kind: str, stage_id: str) -> bool:
    """Return whether a stage is a part of a stage that is done, so its artifact may be missing."""
    whole = whole_of(stage_id)
    return whole is not None and state_of(store, kind, whole) is StageState.CACHED


def merged_parts(store: Path) -> list[StageSpec]:
    """Return the parts whose answers were merged."""
    return [spec for spec in known_specs(store) if is_merged(store, spec.kind, spec.id)]


def changed_inputs(store: Path, stage_id: str) -> list[str]:
    """Return the inputs of a stage, as "kind/id", that have changed since its artifact was made.

    A missing input does not count as changed, because rebuilding it may produce the same contents.
    """
    return [
        name
        for name, recorded in (read_inputs(store, stage_id) or {}).items()
        if _content_of(store / name) not in (None, recorded)
    ]


def contents_of(store: Path, inputs: Mapping[str, str]) -> dict[str, str | None]:
    """Return the content hash of each input by "kind/id"; None for a missing input.

    `inputs` maps the id of each input to its kind.
    """
    return {f"{kind}/{id}": _content_of(store / kind / id) for id, kind in inputs.items()}


def read_inputs(store: Path, stage_id: str) -> Mapping[str, str] | None:
    """Return the content hashes of a stage's inputs when it began; None if none are recorded."""
    with suppress(UserError):
        contents = read_json(stage_path(store, stage_id) / INPUTS)
        return contents if isinstance(contents, dict) else None
    return None


def write_inputs(store: Path, stage_id: str, contents: Mapping[str, str | None]) -> None:
    """Record the content hashes of a stage's inputs; called before the stage begins."""
    make_folder(stage_path(store, stage_id))
    path = stage_path(store, stage_id) / INPUTS
    replace_text(path, json.dumps(contents, indent=2) + "\n")


def _content_of(folder: Path) -> str | None:
    """Return the content hash of a finished artifact; None if it cannot be read."""
    path = folder / MANIFEST
    try:
        stat = path.stat()
        return _content_at(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    except (OSError, UserError, MissingEnvironmentError):
        return None


@lru_cache(maxsize=4096)
def _content_at(path: Path, *_: int) -> str:
    # Cached because it is called twice a second for each watched stage. This is safe because
    # a manifest is never changed in place.
    manifest = read_manifest(path.parent)
    entries = (_independent_of_store(path.parent, entry) for entry in manifest.files)
    return content_sha256(replace(manifest, files=tuple(entries)))


def _independent_of_store(folder: Path, entry: FileEntry) -> FileEntry:
    """Return a file's entry with a size and hash that do not depend on the store's path.

    JSON records contain absolute paths; the store's path is removed before they are hashed.
    """
    if not entry.path.endswith(".json") or entry.bytes > _RECORD_BYTES:
        return entry
    text = _STRING.sub(
        lambda string: _STAGE_FOLDER.sub(rb'"\1', string[0]), (folder / entry.path).read_bytes()
    )
    return replace(entry, bytes=len(text), sha256=hashlib.sha256(text).hexdigest())


def damage(store: Path, kind: str, stage_id: str) -> list[Finding]:
    """Return the differences between a finished artifact and its manifest.

    Only files with a changed modification time are hashed.

    Raises:
        NewerVersionError: a newer version made the artifact.
        MissingEnvironmentError: a file cannot be read, so its contents are unknown.
    """
    folder = artifact_path(store, kind, stage_id)
    try:
        findings = compare_changed(folder, read_manifest(folder))
    except NewerVersionError:
        raise
    except UserError as error:
        return [Finding(path=MANIFEST, problem=f"is damaged ({error.what})")]
    if unreadable := [finding for finding in findings if finding.unreadable]:
        raise MissingEnvironmentError(
            f"{folder}: {_listed(unreadable)}",
            hint="Check permissions and the disk. Nothing is removed, not even with --repair.",
        )
    return findings


def _listed(findings: Iterable[Finding]) -> str:
    return "; ".join(f"{finding.path} {finding.problem}" for finding in findings)


def check_intact(store: Path, kind: str, stage_id: str) -> None:
    """Check that a finished artifact does not differ from its manifest.

    Raises:
        StageFailedError: the artifact differs.
        NewerVersionError, MissingEnvironmentError: the artifact cannot be compared; see `damage`.
    """
    if findings := damage(store, kind, stage_id):
        folder = artifact_path(store, kind, stage_id)
        raise StageFailedError(
            f"{folder}: was damaged or edited since it was made: {_listed(findings)}",
            hint="Run the same command with --repair to remove and rebuild it.",
        )


def remove(store: Path, stage: AnyStage) -> None:
    """Remove the artifact of a stage, the leftovers of unfinished attempts, and the stage's state.

    Raises:
        BusyError: a process is running the stage.
    """
    make_folder(store / "stages")
    with holding_lease(stage_path(store, stage.id)):
        for path in _paths(store, stage):
            _discard(path, stage.id)


def discard_made(store: Path, kind: str, stage_id: str) -> None:
    """Remove the artifact of a stage and the leftovers of unfinished attempts.

    The caller must hold the stage's lease.

    Raises:
        NewerVersionError, MissingEnvironmentError: nothing was removed; see `damage`.
    """
    if is_finished(artifact_path(store, kind, stage_id)):
        damage(store, kind, stage_id)
    for path in _made(store, kind, stage_id):
        _discard(path, stage_id)


def _discard(path: Path, stage_id: str) -> None:
    # Rename the folder before removing it, so that a half-removed folder does not block the next
    # attempt. That attempt removes any leftovers with the new name.
    discarded = new_working_path(path.with_name(stage_id))
    with suppress(FileNotFoundError):
        path.rename(discarded)
    shutil.rmtree(discarded, ignore_errors=True)


def removable(store: Path, stages: Sequence[Stage]) -> list[Stage]:
    """Return those of `stages` that have files on disk, except running stages and their inputs."""
    needed: set[str] = set()
    for spec in known_specs(store):
        if state_of(store, spec.kind, spec.id) is StageState.RUNNING:
            needed.update((spec.id, *spec.inputs))
    return [
        stage
        for stage in stages
        if stage.id not in needed and any(path.exists() for path in _paths(store, stage))
    ]


def bytes_of(store: Path, stage: AnyStage) -> int:
    """Return the total size of a stage's files in bytes; a hard link counts as a complete file."""
    files = (path for top in _paths(store, stage) for path in top.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


def _paths(store: Path, stage: AnyStage) -> tuple[Path, ...]:
    return (*_made(store, stage.kind, stage.id), stage_path(store, stage.id))


def _made(store: Path, kind: str, stage_id: str) -> tuple[Path, ...]:
    folder = artifact_path(store, kind, stage_id)
    resumable = (training_path(folder), resumable_path(folder))
    leftovers = leftover_paths(folder) if folder.parent.is_dir() else []
    return (folder, *resumable, *leftovers)


def read_failure(store: Path, stage_id: str) -> StageFailure | None:
    """Return the failure of a stage's last attempt; None if that attempt did not fail."""
    path = stage_path(store, stage_id) / FAILURE
    if not path.is_file():
        return None
    try:
        return codec.from_json(StageFailure, read_json(path), str(path))
    except UserError as error:
        return StageFailure(exit_code=int(ExitCode.STAGE_FAILED), ended="", said=error.what)
