"""Count how often a batch job was restarted without having saved more of its stage's work.

A job is restarted after its time limit, after preemption and after the failure of its node. Without
a limit, a stage that never comes to its first save would be restarted for ever. The script of a job
counts by itself how often it was started without having come to its worker; see `slurm.script`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.records import codec
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.store.files import read_json, replace_text
from amnesia_bench.store.layout import artifact_path, resumable_path, stage_path, training_path

# Both are files in the stage's folder. A job's script appends a line to STARTS when it starts.
RESTARTS, STARTS = "restarts.json", "starts"


@dataclass(frozen=True, kw_only=True)
class _Restarts:
    """The sizes of the saved files by name, and the number of restarts since they changed."""

    saved: Mapping[str, int]
    count: int


def count_restart(store: Path, spec: StageSpec, limit: int) -> None:
    """Record that a job begins to run a stage; the caller must hold the stage's lease.

    Args:
        store: the folder of all artifacts.
        spec: the stage.
        limit: the number of restarts in a row that may be without progress.

    Raises:
        StageFailedError: the limit is exceeded.
    """
    path = stage_path(store, spec.id) / RESTARTS
    saved = _saved_files(artifact_path(store, spec.kind, spec.id))
    count = 0
    with suppress(UserError):  # there is none yet, or it is damaged
        before = codec.from_json(_Restarts, read_json(path), str(path))
        count = before.count + 1 if before.saved == saved else 0
    if count > limit:
        raise StageFailedError(
            f"its job was restarted cluster.max_restarts={limit} times in a row without having "
            "saved more of its work",
            hint="If the time limit ended it, increase cluster.time_limit_hours or "
            "cluster.save_seconds. If nodes failed, exclude them: "
            "\"cluster.options=['--exclude=NODES']\".",
        )
    record = _Restarts(saved=saved, count=count)
    replace_text(path, json.dumps(codec.to_json(record)) + "\n")
    path.with_name(STARTS).unlink(missing_ok=True)


def _saved_files(artifact: Path) -> dict[str, int]:
    """Return the sizes of the files from which an unfinished stage resumes.

    A training resumes from its last complete checkpoint, so its other records do not count.
    """
    files = [path for top in (artifact, resumable_path(artifact)) for path in top.rglob("*")]
    files += training_path(artifact).glob("checkpoints/step-*/complete.json")
    sizes = {}
    for path in sorted(files):
        with suppress(FileNotFoundError):  # the command of a killed worker may still be running
            if not path.is_dir():
                sizes[str(path.relative_to(artifact.parent))] = path.stat().st_size
    return sizes
