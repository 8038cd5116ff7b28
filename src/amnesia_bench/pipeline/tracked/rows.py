"""The tracked run of a table row: its values, and their differences from the row +SFT.

A service compares runs with each other, and the values of one row come from several stages.
Experiments may evaluate the same checkpoint on different tasks, so each has rows of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench.config.schema import Variant
from amnesia_bench.config.tracking_schema import Tracking
from amnesia_bench.pipeline.graph import ExperimentRow, Graph
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.pipeline.tracked.metrics import (
    CONTEXT_TOKENS,
    DELTA,
    RECALL_BY_LENGTH,
    cells_in,
    details_of,
    values_of,
)
from amnesia_bench.pipeline.tracked.stages import is_done
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.records.ids import AFTER_SFT, BEFORE_SFT
from amnesia_bench.tracking.tracked_run import RunHeader, TrackedRun, run_id_of

ROW = "row"
_RESTORED = "restored"


@dataclass(frozen=True, kw_only=True)
class TrackedRow:
    """A table row of an experiment, for one seed.

    `method` is that of the row; with a restore variant, it is `restored-VARIANT`. `finetune` is
    None for the checkpoint before SFT. `profile` is the name of the profile.
    """

    model: str
    method: str
    finetune: str | None
    seed: int
    profile: str
    experiment: str
    checkpoint: Stage
    measured: tuple[Stage, ...]

    @property
    def _compared(self) -> tuple[str, str, int]:
        return self.experiment, self.model, self.seed

    @property
    def name(self) -> str:
        """The name of the row's run, `HypeNet-2B restored-qk@miromind seed 0 (table4, paper)`."""
        sft = "" if self.finetune is None else f"@{self.finetune}"
        of = f"{self.experiment}, {self.profile}"
        return f"{self.model} {self.method}{sft} seed {self.seed} ({of})"

    def run_id(self, store: Path) -> str:
        """Return the id of the row's run."""
        return run_id_of(store / ROW / self.profile / self.experiment / self.checkpoint.id)

    def is_sft_of(self, other: TrackedRow) -> bool:
        """Return whether this is the row +SFT with which `other` is compared."""
        same = self._compared == other._compared
        sft_fits = other.finetune in (None, self.finetune)
        return self.method == AFTER_SFT and same and sft_fits


def rows_of_experiments(graphs: Sequence[Graph]) -> tuple[TrackedRow, ...]:
    """Return the table rows of experiments, each once, with all of its evaluations."""
    rows: dict[tuple[str, str], TrackedRow] = {}
    for graph in graphs:
        config = graph.job.config
        for row in graph.rows:
            new = _row(row, config.restore, config.profile.name, config.experiment.name)
            key = new.experiment, row.checkpoint.id
            known = rows.get(key, new)
            stages = {stage.id: stage for stage in (*known.measured, *new.measured)}
            rows[key] = replace(known, measured=tuple(stages.values()))
    return tuple(rows.values())


def _row(row: ExperimentRow, variant: Variant, profile: str, experiment: str) -> TrackedRow:
    method = f"{_RESTORED}-{variant.name}" if row.method == _RESTORED else row.method
    return TrackedRow(
        model=row.model,
        method=method,
        finetune=None if row.method == BEFORE_SFT else row.finetune,
        seed=row.seed,
        profile=profile,
        experiment=experiment,
        checkpoint=row.checkpoint,
        measured=row.measured,
    )


def row_runs(rows: Sequence[TrackedRow], store: Path, tracking: Tracking) -> list[TrackedRun]:
    """Return a tracked run for each row whose evaluations are all finished.

    Raises:
        UserError: a file of a finished evaluation is damaged.
    """
    done = {
        row.run_id(store): tuple(c for stage in row.measured for c in cells_in(stage.folder(store)))
        for row in rows
        if all(is_done(store, stage) for stage in row.measured)
    }
    finished = [row for row in rows if row.run_id(store) in done]
    runs = []
    for row in finished:
        posts = (done[other.run_id(store)] for other in finished if other.is_sft_of(row))
        runs.append(_run(row, done[row.run_id(store)], next(posts, ()), store, tracking))
    return runs


def _run(
    row: TrackedRow, cells: Sequence[Cell], post: Iterable[Cell], store: Path, tracking: Tracking
) -> TrackedRun:
    values, before = values_of(cells), values_of(post)
    deltas = {f"{DELTA}/{n}": value - before[n] for n, value in values.items() if n in before}
    by_length: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for cell in cells:
        if cell.context_tokens is not None and cell.value is not None:
            by_length[cell.context_tokens][f"{RECALL_BY_LENGTH}/{cell.task}"] = cell.value
    return TrackedRun(
        header=RunHeader(
            project=tracking.project,
            entity=tracking.entity,
            run_id=row.run_id(store),
            name=row.name,
            group=row.model,
            job_type=ROW,
            tags=(row.experiment, f"seed {row.seed}"),
            config={
                "model": row.model,
                "method": row.method,
                "finetune": row.finetune or "",
                "seed": row.seed,
                "profile": row.profile,
                "checkpoint": row.checkpoint.id,
            },
        ),
        summary=values | deltas,
        details=details_of(cells),
        step_name=CONTEXT_TOKENS,
        history=tuple((length, by_length[length]) for length in sorted(by_length)),
    )
