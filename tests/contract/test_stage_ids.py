"""The ids of all stages of the committed experiments, which no refactoring may change.

A stage whose id has changed is not a cache hit, so everybody's finished stage would run again. If
an id has to change, because the stage makes something else now, rewrite the file and commit it:

    python -m tests.contract.test_stage_ids
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.config.files import options
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.graph import build, stages_of
from amnesia_bench.pipeline.stage import VERSIONS
from amnesia_bench.requests.answering import AnsweringRequest, AnswerPart
from tests.support.experiments import GEMMA, ONE_GPU, SMOKE_SELECTION

PINS = Path(__file__).parents[1] / "golden" / "stage_ids.json"
COMMAND = "python -m tests.contract.test_stage_ids"
PROFILES = ("paper", "tiny", "smoke", *GEMMA, ONE_GPU, SMOKE_SELECTION)


def stage_hashes(profile: str) -> dict[str, str]:
    """Return the hashes in the ids of the stages of a profile, by the rest of the id."""
    graphs = []
    for experiment in options("experiment"):
        with suppress(UserError):  # experiments that are not defined for this profile
            jobs = load_jobs([f"experiment={experiment}", f"profile={profile}"])
            graphs += [build(job) for job in jobs]
    # The number of parts depends on estimated hours, and the id of a part on that of the whole.
    parts = {
        stage.id
        for stage in stages_of(graphs)
        if isinstance(stage.request, AnsweringRequest)
        and isinstance(stage.request.division, AnswerPart)
    }
    hashes: dict[str, str] = {}
    for stage_id in sorted(stage.id for stage in stages_of(graphs) if stage.id not in parts):
        name, _, digest = stage_id.rpartition("-")
        hashes[name] = f"{hashes[name]} {digest}" if name in hashes else digest
    return hashes


@pytest.mark.parametrize("profile", PROFILES)
def test_ids_move_only_on_purpose(profile: str) -> None:
    pinned, now = json.loads(PINS.read_text())[profile], stage_hashes(profile)
    moved = sorted(name for name in pinned.keys() & now.keys() if pinned[name] != now[name])
    message = (
        f"{len(moved)} ids have changed, the first of them {moved[:3]}. Everybody's finished "
        "stages of these names would run again. A new field that cannot affect a result must be "
        f"marked NEUTRAL (config/cache_key.py). If the ids must change: {COMMAND}"
    )
    assert not moved, message
    changed = sorted(pinned.keys() ^ now.keys())
    assert not changed, f"stages were added or removed: {changed[:3]}. If on purpose: {COMMAND}"


def test_every_kind_of_stage_is_pinned() -> None:
    pins = json.loads(PINS.read_text())
    kinds = {name.partition(".")[0] for profile in PROFILES for name in pins[profile]}
    assert kinds == set(VERSIONS)


if __name__ == "__main__":
    text = json.dumps({profile: stage_hashes(profile) for profile in PROFILES}, indent=1)
    PINS.write_text(text + "\n")
    print(f"wrote {PINS}")  # noqa: T201
