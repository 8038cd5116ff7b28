"""What is known on disk of the stages of a store.

<store>/<kind>/<id>/manifest.json   the stage is done: every file of the folder, with its hash
<store>/stages/<id>/stage.json      what it is to do: a StageOrder
<store>/stages/<id>/log.txt         what its attempts said
<store>/stages/<id>/failure.json    how the last attempt failed
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia_bench.errors import ExitCode, StageFailedError, UserError
from amnesia_bench.records import codec
from amnesia_bench.records.stages import StageFailure, StageOrder
from amnesia_bench.store.files import make_folder, read_json, write_json
from amnesia_bench.store.hashing import Finding, compare_changed, read_manifest
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

if TYPE_CHECKING:  # a worker of a second must not wait for the config packages
    from amnesia_bench.pipeline.stage import Stage

ORDER, LOG, FAILURE = "stage.json", "log.txt", "failure.json"


class StageState(StrEnum):
    """What is to be done about a stage."""

    CACHED = "cached"
    RUNNING = "running"
    FAILED = "failed"
    WAITING = "to run"


def state_of(store: Path, kind: str, stage_id: str) -> StageState:
    """Return the state of a stage; whether its files are intact is not looked at."""
    if (artifact_path(store, kind, stage_id) / MANIFEST).is_file():
        return StageState.CACHED
    folder = stage_path(store, stage_id)
    if current_holder(folder) is not None:
        return StageState.RUNNING
    return StageState.FAILED if (folder / FAILURE).is_file() else StageState.WAITING


def damage(store: Path, kind: str, stage_id: str) -> list[Finding]:
    """Return how a finished artifact differs from its manifest; touched files are read again."""
    folder = artifact_path(store, kind, stage_id)
    try:
        return compare_changed(folder, read_manifest(folder))
    except UserError as error:
        return [Finding(path=MANIFEST, problem=f"is damaged ({error.what})")]


def check_intact(store: Path, kind: str, stage_id: str) -> None:
    """Refuse an artifact that is not what its manifest says.

    Raises:
        StageFailedError: it is not.
    """
    if findings := damage(store, kind, stage_id):
        what = "; ".join(f"{finding.path} {finding.problem}" for finding in findings)
        raise StageFailedError(
            f"{artifact_path(store, kind, stage_id)}: was damaged since it was made: {what}",
            hint="The same command with --repair makes it anew.",
        )


def remove(store: Path, stage: Stage) -> None:
    """Remove an artifact, what its attempts left, and what is known of it.

    Raises:
        BusyError: a process is working on it.
    """
    make_folder(store / "stages")
    with holding_lease(stage_path(store, stage.id)):
        for path in _paths(store, stage):
            # First its name: what is half removed must not be in the way of the next attempt,
            # which clears what is left under this one.
            discarded = new_working_path(path.with_name(stage.id))
            with suppress(FileNotFoundError):
                path.rename(discarded)
            shutil.rmtree(discarded, ignore_errors=True)


def removable(store: Path, stages: Sequence[Stage]) -> list[Stage]:
    """Return the stages that have anything on disk, but none that runs or that one reads."""
    needed: set[str] = set()
    for order in known_orders(store):
        if state_of(store, order.kind, order.id) is StageState.RUNNING:
            needed.update((order.id, *order.inputs))
    return [
        stage
        for stage in stages
        if stage.id not in needed and any(path.exists() for path in _paths(store, stage))
    ]


def bytes_of(store: Path, stage: Stage) -> int:
    """Return how much disk a stage takes, hardlinks counted in full."""
    files = (path for top in _paths(store, stage) for path in top.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


def _paths(store: Path, stage: Stage) -> tuple[Path, ...]:
    folder = stage.folder(store)
    left = (training_path(folder), resumable_path(folder))
    killed = leftover_paths(folder) if folder.parent.is_dir() else []
    return (folder, *left, *killed, stage_path(store, stage.id))


def write_orders(store: Path, orders: Sequence[StageOrder]) -> None:
    """Write down what stages are to do."""
    for order in orders:
        folder = stage_path(store, order.id)
        make_folder(folder)
        path, said = folder / ORDER, codec.to_json(order)
        with suppress(UserError):  # none, or half written
            if read_json(path) == said:
                continue
        # Another driver may be writing the same at this moment.
        work = new_working_path(path)
        write_json(work, said)
        work.replace(path)


def read_order(store: Path, stage_id: str) -> StageOrder:
    """Read what a stage is to do.

    Raises:
        UserError: there is no such stage.
    """
    path = stage_path(store, stage_id) / ORDER
    if not path.is_file():
        raise UserError(f"{stage_id}: no such stage in {store}", hint="amnesia status lists them.")
    return codec.from_json(StageOrder, read_json(path), str(path))


def known_orders(store: Path) -> list[StageOrder]:
    """Return the orders of all stages of a store, sorted by id; none that is half written."""
    found = []
    for path in sorted(store.glob(f"stages/*/{ORDER}")):
        with suppress(UserError):
            found.append(read_order(store, path.parent.name))
    return found


def read_failure(store: Path, stage_id: str) -> StageFailure | None:
    """Return how the last attempt at a stage failed; None if it did not."""
    path = stage_path(store, stage_id) / FAILURE
    if not path.is_file():
        return None
    try:
        return codec.from_json(StageFailure, read_json(path), str(path))
    except UserError as error:
        return StageFailure(exit_code=int(ExitCode.STAGE_FAILED), ended="", said=error.what)
