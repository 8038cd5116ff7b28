"""Remember which runs were published, so that nothing is sent twice.

<store>/tracking/<service>/published/<project>/<run id>.json

W&B can only append to the history of a run, and never uses the id of a deleted run again. So a run
whose history or tables have changed is published under a new id: `<run id>-2`, `<run id>-3`, ...
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from amnesia_bench.pipeline.tracked.service import TRACKING
from amnesia_bench.store.files import make_folder, read_json, replace_text

_PUBLISHED = "published"


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What a service has received of a run.

    Attributes:
        sha256: the hash of everything; None if sending it has not ended.
        lines_sha256: the hash of its history and tables; None likewise.
        mode: how it was sent: `local`, `online` or `offline`.
        tags: its tags.
        version: how many ids the run has had.
    """

    sha256: str | None
    lines_sha256: str | None
    mode: str
    tags: tuple[str, ...]
    version: int = 1


def stamps_of(folder: Path, project: str) -> Path:
    """Return the folder of a project's stamps; `folder` is that of the service in the store."""
    return folder / _PUBLISHED / project


def read_stamp(stamps: Path, run_id: str) -> Stamp | None:
    """Return the stamp of a run; None if it was never published.

    Raises:
        UserError: the file is damaged.
    """
    path = stamps / f"{run_id}.json"
    if not path.is_file():
        return None
    values = read_json(path)
    return Stamp(
        sha256=values["sha256"],
        lines_sha256=values.get("lines_sha256"),
        mode=values["mode"],
        tags=tuple(values["tags"]),
        version=values.get("version", 1),
    )


def write_stamp(stamps: Path, run_id: str, stamp: Stamp) -> None:
    """Write the stamp of a run."""
    make_folder(stamps)
    replace_text(stamps / f"{run_id}.json", json.dumps(asdict(stamp)) + "\n")


def id_of_version(run_id: str, version: int) -> str:
    """Return the id of a run at the service."""
    return run_id if version == 1 else f"{run_id}-{version}"


def wandb_id(store: Path, project: str, run_id: str) -> str:
    """Return the id under which a run was last published to W&B; its own id if it was not."""
    stamp = read_stamp(stamps_of(store / TRACKING / "wandb", project), run_id)
    return run_id if stamp is None else id_of_version(run_id, stamp.version)
