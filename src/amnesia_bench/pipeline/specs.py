"""Write and read the specs of stages, which tell other processes how to run each stage.

The spec of a stage is the file `stage.json` in the stage's folder.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.stage import VERSIONS
from amnesia_bench.records import codec
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.requests.base import StageRequest
from amnesia_bench.requests.stage_requests import STAGE_REQUESTS
from amnesia_bench.store.files import make_folder, read_json, write_json
from amnesia_bench.store.layout import new_working_path, stage_path
from amnesia_bench.store.lease import current_holder

SPEC = "stage.json"


class OlderStage(NamedTuple):
    """A stage that an earlier version wrote, whose id has another format."""

    kind: str
    id: str


def write_specs(store: Path, specs: Sequence[StageSpec]) -> None:
    """Write the specs of stages to the store; specs that are already there are not rewritten."""
    for spec in specs:
        folder = stage_path(store, spec.id)
        make_folder(folder)
        path, record = folder / SPEC, codec.to_json(spec)
        with suppress(UserError):  # the file is missing or incomplete
            if read_json(path) == record:
                continue
        # Another driver may be writing the same file at the same time.
        work = new_working_path(path)
        write_json(work, record)
        work.replace(path)


def read_spec(store: Path, stage_id: str) -> StageSpec:
    """Return the spec of a stage.

    Raises:
        UserError: the stage does not exist, or an earlier version wrote it.
    """
    path = stage_path(store, stage_id) / SPEC
    if not path.is_file():
        raise UserError(f"{stage_id}: no such stage in {store}", hint="amnesia status lists them.")
    return codec.from_json(StageSpec, read_json(path), str(path))


def request_of(spec: StageSpec) -> StageRequest:
    """Return the request in a spec; its locations are relative to the store.

    Raises:
        UserError: the spec is damaged.
    """
    if spec.front_door not in STAGE_REQUESTS:
        raise UserError(f"{spec.id}: stages cannot run the front door {spec.front_door!r}")
    try:
        return STAGE_REQUESTS[spec.front_door].model_validate_json(json.dumps(spec.request))
    except ValidationError as error:
        raise UserError(f"{spec.id}: its request is damaged ({error})") from error


def known_specs(store: Path) -> list[StageSpec]:
    """Return the specs in a store, sorted by id, without incomplete ones and older versions'."""
    specs = []
    for path in sorted(store.glob(f"stages/*/{SPEC}")):
        with suppress(UserError):
            specs.append(read_spec(store, path.parent.name))
    return specs


def older_stages(store: Path) -> list[OlderStage]:
    """Return the stages that earlier versions wrote, except running ones and their inputs.

    Their ids do not begin with the kind of the stage.
    """
    stages: list[OlderStage] = []
    in_use: set[str] = set()
    for path in sorted(store.glob(f"stages/*/{SPEC}")):
        stage_id = path.parent.name
        with suppress(UserError):
            record = read_json(path)
            if not isinstance(record, dict):
                continue
            kind = str(record.get("kind"))
            if kind in VERSIONS and not stage_id.startswith(f"{kind}."):
                stages.append(OlderStage(kind, stage_id))
                if current_holder(path.parent) is not None:
                    in_use |= {stage_id, *record.get("inputs", ())}
    return [stage for stage in stages if stage.id not in in_use]


def older_note(store: Path) -> str | None:
    """Return a note for the user about stages of earlier versions; None if there are none."""
    if not (older := older_stages(store)):
        return None
    return (
        f"{store} has {len(older)} stages of an earlier version. They cannot be used, because "
        "stage ids have changed; experiments rebuild their stages. To free the disk space: "
        f"amnesia clean --earlier-versions --store {shlex.quote(str(store))}"
    )
