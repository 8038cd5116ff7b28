"""Requests for experiments: plan, run, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from amnesia_bench.config.schema import Frozen
from amnesia_bench.requests.base import Location, Request
from amnesia_bench.requests.training import GpuName

Overrides = tuple[str, ...]


class LabelledCells(Frozen):
    """A folder of cells and their label; a part that is None is read from the cells.

    `method` is a row of the table with its fine-tune: "post@miromind". `seed` is a string because
    it is part of a label.
    """

    folder: Location
    model: str | None = None
    method: str | None = None
    seed: str | None = None


class LabelledDrift(Frozen):
    """A restoration.json, or the output of `amnesia diff --json`, and its label in the figure.

    If `label` is None, the name of the file's folder is used.
    """

    file: Location
    label: str | None = None


class ReportRequest(Request):
    """`report`: fill the paper's tables with measured cells, next to the paper's numbers.

    Attributes:
        tables: names of configs in configs/report, or paths of your own.
        sources: folders of cells.
        overrides: overrides applied to every table: `report.models=[tiny]`.
        drift: records of how far W_Q and W_K drifted; each becomes one curve.
    """

    tables: Annotated[tuple[str, ...], Field(min_length=1)]
    sources: tuple[LabelledCells, ...] = ()
    overrides: Overrides = ()
    drift: tuple[LabelledDrift, ...] = ()


class PlanRequest(Request):
    """`plan`: estimate what experiments will take, before anything starts.

    `overrides` are those of `run`. If `store` is None, $AMNESIA_STORE is used.
    """

    overrides: Overrides
    gpu: GpuName = "h100"
    store: Location | None = None


class RunRequest(Request):
    """`run`: run every stage of the experiments that is not done yet, then write their report.

    Attributes:
        overrides: `experiment=table1,table4`, `profile=tiny`, ...
        store: folder of all artifacts; None selects $AMNESIA_STORE.
        results: folder of reports.
        repair: remove damaged artifacts and rebuild them.
    """

    overrides: Overrides
    store: Location | None = None
    results: Location = Path("results")
    repair: bool = False
