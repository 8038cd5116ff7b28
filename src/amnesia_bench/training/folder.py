"""The folder beside the output in which a run keeps what it needs to go on.

<out>.training/training.json    what the run is and what it reads; a resumed one must agree
<out>.training/metrics.jsonl    one line a step
<out>.training/speed.jsonl      seconds and tokens per second, which differ from run to run
<out>.training/checkpoints/     see `checkpoints`

It has a visible name, so a user may have a folder of that name, or keep notes in ours. A folder
that does not say by its training.json that it is ours is refused, and only files of these names are
ever removed.
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
class _Written:
    run: Mapping[str, object]
    parents: tuple[Parent, ...]


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a run is: its settings, and what it reads, by content."""

    run: TrainingRun
    parents: tuple[Parent, ...]

    def differences(self, other: Beginning) -> list[str]:
        """Return what decides the result and is not the same now, in `other`."""
        found = []
        before, now = cache_key(self.run), cache_key(other.run)
        for group, old in before.items():
            for key, value in now[group].items():
                if old[key] != value:
                    found.append(f"{group}.{key} was {old[key]}, now {value}")
        read_before = {parent.role: parent for parent in self.parents}
        for parent in other.parents:
            old_parent = read_before.get(parent.role)
            if old_parent is None or old_parent.identity != parent.identity:
                where = "nothing" if old_parent is None else old_parent.location
                found.append(f"{parent.role} was {where}, and {parent.location} has other contents")
        return found


def read_beginning(path: Path) -> Beginning:
    """Read a training.json.

    Raises:
        UserError: it is missing, or none of ours.
    """
    written = codec.from_json(_Written, read_json(path), str(path))
    try:
        run = TrainingRun.model_validate_json(json.dumps(written.run))
    except (ValidationError, ValueError) as error:
        first = str(error).splitlines()[:3]
        raise UserError(
            f"{path}: not the settings of a run of this version ({' '.join(first)})"
        ) from error
    return Beginning(run=run, parents=written.parents)


def check_run_folder(folder: Path) -> None:
    """Refuse to work in a folder that is not ours.

    Raises:
        UserError: there is something in it, and no training.json of ours; nothing was written.
    """
    if not folder.is_dir():
        return
    path = folder / SETTINGS
    # All that a run makes before it has said what it is.
    early = {folder / _FRESH_SETTINGS, folder / CHECKPOINTS}
    checkpoints = folder / CHECKPOINTS
    hint = (
        "A run keeps its saves in a folder of this name. Move this one away, or choose another "
        "--out."
    )
    if path.exists():
        try:
            read_beginning(path)
        except UserError as error:
            raise UserError(error.what, hint=error.hint or hint) from error
        return
    foreign = set(folder.iterdir()) - early
    if checkpoints.is_dir():
        foreign |= set(checkpoints.iterdir())
    if foreign:
        raise UserError(
            f"{folder}: holds {min(foreign).relative_to(folder)} and no {SETTINGS}, so it is not "
            "the folder of a run; nothing was written",
            hint=hint,
        )


def check_resume_matches(folder: Path, beginning: Beginning) -> None:
    """Write down what the run is; on a resume, refuse a run that is another.

    Raises:
        UserError: a setting that decides the result, or an input, is another one.
    """
    path, fresh = folder / SETTINGS, folder / _FRESH_SETTINGS
    if any((folder / CHECKPOINTS).glob("step-*")) and (
        differences := read_beginning(path).differences(beginning)
    ):
        raise UserError(
            f"{folder} holds a run that began with something else: {'; '.join(differences)}",
            hint="Give what it began with to go on, or another --out to begin again.",
        )
    fresh.unlink(missing_ok=True)
    write_json(fresh, _json(beginning))
    fresh.rename(path)
    sync_folder(folder)


def remove_run(folder: Path) -> list[str]:
    """Remove what a run wrote into its folder, and the folder; return the names of what is left."""
    remove_saves(folder / CHECKPOINTS)
    # What says that the folder is ours goes last.
    for name in (*RECORDS, _FRESH_SETTINGS, SETTINGS):
        remove_files(folder, re.compile(re.escape(name)))
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _json(beginning: Beginning) -> dict[str, Any]:
    return {
        "run": beginning.run.model_dump(mode="json"),
        "parents": [codec.to_json(parent) for parent in beginning.parents],
    }
