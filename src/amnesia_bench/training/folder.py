"""The folder next to the output that contains everything a run needs to resume.

<out>.training/training.json    settings and inputs of the run; a resumed run must have the same
<out>.training/metrics.jsonl    one line per step
<out>.training/speed.jsonl      seconds and tokens per second, which differ from run to run
<out>.training/checkpoints/     see `checkpoints`

The folder is not hidden, so a user may already have a folder of that name, or may add notes to this
one. So a folder that contains files but no training.json of this package is refused, and only files
with the names above are ever removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from amnesia_bench.config.cache_key import cache_key
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.store.files import read_json, remove_files, sync_folder, write_json
from amnesia_bench.training.checkpoints import remove_saves
from amnesia_bench.training.recorder import RECORDS

SETTINGS = "training.json"
CHECKPOINTS = "checkpoints"
_FRESH_SETTINGS = "training.tmp"


@dataclass(frozen=True, kw_only=True)
class _RunRecord:
    run: Mapping[str, object]
    parents: tuple[Parent, ...]


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """The settings of a run, and its inputs (`parents`) with hashes of their contents."""

    run: TrainingRun
    parents: tuple[Parent, ...]

    def differences(self, other: RunIdentity) -> list[str]:
        """Describe each difference between this run and `other` that can change the result."""
        differences = []
        before, now = cache_key(self.run), cache_key(other.run)
        for group, old in before.items():
            new = now[group]
            # A field that was added later is not part of the key if it has its default value.
            for key in dict.fromkeys((*old, *new)):
                if old.get(key) != new.get(key):
                    was, value = (x.get(key, "the default") for x in (old, new))
                    differences.append(f"{group}.{key} was {was}, now {value}")
        old_parents = {parent.role: parent for parent in self.parents}
        for parent in other.parents:
            old_parent = old_parents.get(parent.role)
            if old_parent is None or old_parent.identity != parent.identity:
                where = "nothing" if old_parent is None else old_parent.location
                differences.append(
                    f"{parent.role} was {where}, and {parent.location} has other contents"
                )
        return differences


def read_run_identity(path: Path) -> RunIdentity:
    """Read the identity of a run from its training.json.

    Raises:
        UserError: the file is missing, or this version of the package cannot have written it.
    """
    record = codec.from_json(_RunRecord, read_json(path), str(path))
    try:
        run = TrainingRun.model_validate_json(json.dumps(record.run))
    except (ValidationError, ValueError) as error:
        first = str(error).splitlines()[:3]
        raise UserError(
            f"{path}: not the settings of a training run of this version ({' '.join(first)})"
        ) from error
    return RunIdentity(run=run, parents=record.parents)


def check_run_folder(folder: Path) -> None:
    """Refuse a folder that was not created by a training run.

    Raises:
        UserError: the folder contains files but no valid training.json; nothing was written.
    """
    if not folder.is_dir():
        return
    path = folder / SETTINGS
    # The only entries that a run creates before training.json.
    early = {folder / _FRESH_SETTINGS, folder / CHECKPOINTS}
    checkpoints = folder / CHECKPOINTS
    hint = (
        "A run keeps its checkpoints in a folder of this name. Move this one away, or choose "
        "another --out."
    )
    if path.exists():
        try:
            read_run_identity(path)
        except UserError as error:
            raise UserError(error.what, hint=error.hint or hint) from error
        return
    foreign = set(folder.iterdir()) - early
    if checkpoints.is_dir():
        foreign |= set(checkpoints.iterdir())
    if foreign:
        raise UserError(
            f"{folder}: contains {min(foreign).relative_to(folder)} but no {SETTINGS}, so it is "
            "not the folder of a training run; nothing was written",
            hint=hint,
        )


def check_resume_matches(folder: Path, identity: RunIdentity) -> None:
    """Write training.json; if there are checkpoints, first compare the run with the recorded one.

    Raises:
        UserError: an input, or a setting that can change the result, differs.
    """
    path, fresh = folder / SETTINGS, folder / _FRESH_SETTINGS
    if any((folder / CHECKPOINTS).glob("step-*")) and (
        differences := read_run_identity(path).differences(identity)
    ):
        raise UserError(
            f"{folder} belongs to a run with other settings or inputs: {'; '.join(differences)}",
            hint="Use the original ones to resume, or another --out to start a new run.",
        )
    fresh.unlink(missing_ok=True)
    write_json(fresh, _json(identity))
    fresh.rename(path)
    sync_folder(folder)


def remove_run(folder: Path) -> list[str]:
    """Remove the files of a run, and its folder if it is then empty; return the remaining names."""
    remove_saves(folder / CHECKPOINTS)
    # training.json is removed last, since it marks the folder as that of a training run.
    for name in (*RECORDS, _FRESH_SETTINGS, SETTINGS):
        remove_files(folder, re.compile(re.escape(name)))
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _json(identity: RunIdentity) -> dict[str, Any]:
    return {
        "run": identity.run.model_dump(mode="json"),
        "parents": [codec.to_json(parent) for parent in identity.parents],
    }
