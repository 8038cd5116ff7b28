"""Artifacts that are complete without the inputs of their stage.

These are checkpoints that the user made elsewhere and adopted instead of a stage's own, and
evaluations that were collected from other stores. In a graph, their stages have no inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.store.files import make_folder, read_json, replace_text
from amnesia_bench.store.hashing import is_finished, read_manifest, sha256_of
from amnesia_bench.store.layout import MANIFEST, stage_path

ADOPTED_KIND = "adopted"  # the artifact kind in the manifest
# In the folder of the stage: the hash of the artifact's manifest, and remarks on its inputs.
_COLLECTED = "collected.json"


def adopted_from(store: Path, stage: Stage) -> Parent | None:
    """Return the checkpoint from which a stage's artifact was adopted; None if it was not."""
    folder = stage.folder(store)
    if stage.shape is None or not is_finished(folder):
        return None
    try:
        manifest = read_manifest(folder)
    except UserError:  # damaged; `run` reports it
        return None
    return manifest.parents[0] if manifest.kind == ADOPTED_KIND else None


def is_collected(store: Path, stage: Stage) -> bool:
    """Return whether a stage's artifact was collected from another store."""
    return _collected_record(store, stage) is not None


def _collected_record(store: Path, stage: Stage) -> Mapping[str, Any] | None:
    """Return the record of a collected artifact; None if the artifact was not collected."""
    record = stage_path(store, stage.id) / _COLLECTED
    manifest = stage.folder(store) / MANIFEST
    if not (record.is_file() and manifest.is_file()):
        return None
    content = read_json(record)
    known = isinstance(content, dict) and content.get("manifest_sha256") == sha256_of(manifest)
    return content if known else None


def mark_collected(store: Path, stage: Stage, folder: Path, notes: Sequence[str]) -> None:
    """Record that the artifact in `folder`, which is about to be published, was collected.

    `notes` are the `adoption_notes` of the store from which it was collected.
    """
    make_folder(stage_path(store, stage.id))
    record: dict[str, Any] = {"manifest_sha256": sha256_of(folder / MANIFEST)}
    record |= {"adopted": list(notes)} if notes else {}
    replace_text(stage_path(store, stage.id) / _COLLECTED, json.dumps(record) + "\n")


def needed_stages(store: Path, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages of a graph without those that only such complete artifacts would need.

    Args:
        store: the folder of all artifacts.
        stages: all stages of the graph, each after its inputs.
    """
    cut = [
        replace(stage, inputs=())
        if adopted_from(store, stage) is not None or is_collected(store, stage)
        else stage
        for stage in stages
    ]
    targets = {stage.id for stage in stages} - {i.id for stage in stages for i in stage.inputs}
    needed = set(targets)
    for stage in reversed(cut):  # each stage after the stages that depend on it
        if stage.id in needed:
            needed.update(read.id for read in stage.inputs)
    return tuple(stage for stage in cut if stage.id in needed)


def adoption_notes(store: Path, stages: Iterable[Stage]) -> tuple[str, ...]:
    """Return a remark for reports on each adopted artifact, also of stores that were collected."""
    notes: list[str] = []
    for stage in stages:
        notes += (_collected_record(store, stage) or {}).get("adopted", [])
        if (parent := adopted_from(store, stage)) is not None:
            notes.append(
                f"{stage.id} was adopted, not computed: {parent.location} ({parent.identity})"
            )
    return tuple(dict.fromkeys(notes))
