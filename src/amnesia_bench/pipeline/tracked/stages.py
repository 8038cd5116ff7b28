"""The tracked run of a stage: its request, its values, and its artifact with the files it read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amnesia_bench.config.tracking_schema import Tracking
from amnesia_bench.pipeline.bookkeeping import StageState, state_of
from amnesia_bench.pipeline.graph import Graph
from amnesia_bench.pipeline.stage import Stage, closure
from amnesia_bench.pipeline.tracked.metrics import cells_in, details_of, values_of
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Manifest
from amnesia_bench.requests.training import TrainRequest
from amnesia_bench.store.hashing import read_manifest
from amnesia_bench.tracking.metrics_file import read_metrics
from amnesia_bench.tracking.tracked_run import (
    RunHeader,
    TrackedArtifact,
    TrackedFile,
    TrackedRun,
    run_id_of,
)

_METRICS = "metrics.jsonl"
_WITH_CELLS = ("recall", "scores")
_SHARED = "shared"


@dataclass
class _Labels:
    """The experiments, models and seeds that use a stage, in order."""

    experiments: dict[str, None] = field(default_factory=dict)
    models: dict[str, None] = field(default_factory=dict)
    seeds: dict[int, None] = field(default_factory=dict)


def stage_runs(graphs: Sequence[Graph], store: Path, tracking: Tracking) -> list[TrackedRun]:
    """Return a tracked run for each finished stage of the experiments.

    Raises:
        UserError: a file of a finished stage is damaged.
    """
    labels: defaultdict[str, _Labels] = defaultdict(_Labels)
    stages: dict[str, Stage] = {}
    for graph in graphs:
        needed = [
            *((row.model, row.seed, (row.checkpoint, *row.measured)) for row in graph.rows),
            *((each.model, each.seed, (each.stage,)) for each in graph.analyses),
        ]
        for model, seed, made in needed:
            for stage in closure(made):
                stages[stage.id] = stage
                own = labels[stage.id]
                own.experiments[graph.job.config.experiment.name] = None
                own.models[model] = None
                own.seeds[seed] = None
    return [
        _run(stage, labels[stage.id], store, tracking)
        for stage in stages.values()
        if is_done(store, stage)
    ]


def is_done(store: Path, stage: Stage) -> bool:
    """Return whether a stage is finished, and not stale."""
    return state_of(store, stage.kind, stage.id) is StageState.CACHED


def _run(stage: Stage, labels: _Labels, store: Path, tracking: Tracking) -> TrackedRun:
    folder = stage.folder(store)
    manifest = read_manifest(folder)
    header = RunHeader(
        project=tracking.project,
        entity=tracking.entity,
        run_id=run_id_of(folder),
        name=stage.id,
        group=next(iter(labels.models)) if len(labels.models) == 1 else _SHARED,
        job_type=stage.kind,
        tags=(*labels.experiments, *(f"seed {seed}" for seed in labels.seeds)),
        config={
            "request": stage.request.model_dump(mode="json"),
            "inputs": [read.id for read in stage.inputs],
            "provenance": codec.to_json(manifest.provenance),
        },
    )
    cells = cells_in(folder) if stage.kind in _WITH_CELLS else ()
    seconds = manifest.provenance.seconds
    return TrackedRun(
        header=header,
        summary={
            **({} if seconds is None else {"stage/seconds": seconds}),
            "stage/bytes": float(sum(entry.bytes for entry in manifest.files)),
            **values_of(cells),
        },
        details=details_of(cells),
        history=_history(stage, folder, tracking),
        artifact=_artifact(stage, folder, manifest),
    )


def _history(
    stage: Stage, folder: Path, tracking: Tracking
) -> tuple[tuple[int, Mapping[str, float]], ...]:
    """Return the metrics of a training; empty if it sent them to the same project already."""
    request = stage.request
    if not isinstance(request, TrainRequest):
        return ()
    if tracking.service == "wandb" and request.run.train.wandb_project == tracking.project:
        return ()
    return tuple((line.pop("step"), _numbers(line)) for line in read_metrics(folder / _METRICS))


def _numbers(line: Mapping[str, object]) -> dict[str, float]:
    return {key: value for key, value in line.items() if isinstance(value, int | float)}


def _artifact(stage: Stage, folder: Path, manifest: Manifest) -> TrackedArtifact:
    return TrackedArtifact(
        name=stage.id,
        kind=stage.kind,
        folder=folder,
        files=tuple(
            # A hard link to an input has no hash of its own.
            TrackedFile(
                path=entry.path,
                bytes=entry.bytes,
                digest=entry.sha256 or f"mtime_ns:{entry.mtime_ns}",
            )
            for entry in manifest.files
        ),
        inputs=tuple(read.id for read in stage.inputs),
    )
