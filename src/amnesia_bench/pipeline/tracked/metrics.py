"""The names and values of cells in tracked runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from amnesia_bench.records.evaluation import Cell
from amnesia_bench.records.report import Column
from amnesia_bench.reporting.artifact_files import ArtifactFiles
from amnesia_bench.reporting.sources import read_source
from amnesia_bench.requests.experiments import LabelledCells

RECALL_BY_LENGTH = "recall_by_length"
CONTEXT_TOKENS = "context_tokens"
DELTA = "delta"


def metric_of(cell: Cell) -> str:
    """Return the name of a cell's value: `niah_single_3/32768`, `gsm8k/avg_16/strict`."""
    return _name(cell.task, cell.context_tokens, cell.metric, cell.settings.get("scorer"))


def metric_of_column(column: Column) -> str:
    """Return the name of the values in a column of a table."""
    return _name(column.task, column.context_tokens, column.metric, column.scorer)


def _name(task: str, context_tokens: int | None, metric: str, scorer: str | None) -> str:
    parts = (task, metric, scorer) if context_tokens is None else (task, str(context_tokens))
    return "/".join(re.sub(r"[^A-Za-z0-9_]", "_", part) for part in parts if part)


def values_of(cells: Iterable[Cell]) -> dict[str, float]:
    """Return the values of complete cells by metric name."""
    return {metric_of(cell): cell.value for cell in cells if cell.value is not None}


def details_of(cells: Iterable[Cell]) -> dict[str, float]:
    """Return the n and the interval of each complete cell: `n/NAME`, `low/NAME`, `high/NAME`."""
    details: dict[str, float] = {}
    for cell in cells:
        if cell.value is None:
            continue
        name = metric_of(cell)
        details[f"n/{name}"] = cell.n
        if cell.interval is not None:
            details |= {f"low/{name}": cell.interval.low, f"high/{name}": cell.interval.high}
    return details


def cells_in(folder: Path) -> tuple[Cell, ...]:
    """Return the cells of a finished evaluation; empty if it wrote none.

    Raises:
        UserError: a file is damaged.
    """
    entries, _ = read_source(LabelledCells(folder=folder), folder, ArtifactFiles())
    return tuple(entry.cell for entry in entries)
