"""Requests for experiments: report results, plan what is left, run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from amnesia_bench.config.schema import Frozen
from amnesia_bench.requests.base import Location, Request
from amnesia_bench.requests.training import GpuName

Overrides = tuple[str, ...]


class LabelledCells(Frozen):
    """A folder of cells and what they are of; None where the cells themselves say it.

    `method` is a row of the table with its fine-tune: "post@miromind". `seed` is a text, as it is
    part of a label.
    """

    folder: Location
    model: str | None = None
    method: str | None = None
    seed: str | None = None


class LabelledDrift(Frozen):
    """A restoration.json, or what `amnesia diff --json` printed, and its label in the figure.

    `label` None is the name of the file's folder.
    """

    file: Location
    label: str | None = None


class ReportRequest(Request):
    """`report`: lay measured cells out in the paper's tables, next to the paper's numbers.

    Attributes:
        tables: files of configs/report.
        sources: the cells.
        overrides: changes of every table: `report.models=[tiny]`.
        drift: how far W_Q and W_K moved, a curve each.
    """

    tables: Annotated[tuple[str, ...], Field(min_length=1)]
    sources: tuple[LabelledCells, ...] = ()
    overrides: Overrides = ()
    drift: tuple[LabelledDrift, ...] = ()


class PlanRequest(Request):
    """`plan`: what experiments will take, before anything starts.

    `overrides` as for `run`; `store` None is $AMNESIA_STORE.
    """

    overrides: Overrides
    gpu: GpuName = "h100"
    store: Location | None = None


class RunRequest(Request):
    """`run`: every stage of experiments that is not done yet, then their report.

    Attributes:
        overrides: `experiment=table1,table4`, `profile=tiny`, ...
        store: folder of all artifacts; None is $AMNESIA_STORE.
        results: folder of reports.
        repair: remove damaged artifacts and make them again.
    """

    overrides: Overrides
    store: Location | None = None
    results: Location = Path("results")
    repair: bool = False
