"""Requests for experiments: plan, run, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from amnesia_bench.config.cluster_schema import GpuName
from amnesia_bench.config.schema import Frozen
from amnesia_bench.requests.base import Location, Request

Overrides = tuple[str, ...]


class LabelledCells(Frozen):
    """A folder of cells, with the labels under which they are reported.

    A label that is None is read from the cells. `method` names a table row and its fine-tune, for
    example "post@miromind". `seed` is a string because it is part of a label.
    """

    folder: Location
    model: str | None = None
    method: str | None = None
    seed: str | None = None


class LabelledDrift(Frozen):
    """A file of drift measurements, and the label of its curve in the drift figure.

    `file` is a restoration.json or the output of `amnesia diff --json`. If `label` is None, the
    name of the file's folder is used.
    """

    file: Location
    label: str | None = None


class ReportRequest(Request):
    """`report`: fill the paper's tables with measured cells, next to the paper's numbers.

    Attributes:
        tables: names of configs in configs/report, or paths of your own config files.
        sources: folders of measured cells.
        overrides: overrides for every table config, for example `report.models=[tiny]`.
        drift: files with the measured drift of W_Q and W_K; each file becomes one curve.
        notes: remarks to show first among the notes of the report.
    """

    tables: Annotated[tuple[str, ...], Field(min_length=1)]
    sources: tuple[LabelledCells, ...] = ()
    overrides: Overrides = ()
    drift: tuple[LabelledDrift, ...] = ()
    notes: tuple[str, ...] = ()


class PlanRequest(Request):
    """`plan`: estimate the cost of experiments without running any stage.

    `overrides` are the same as for `run`. If `store` is None, $AMNESIA_STORE is used.
    """

    overrides: Overrides
    gpu: GpuName = "h100"
    store: Location | None = None


class RunRequest(Request):
    """`run`: run all unfinished stages of the experiments, then write the reports.

    Attributes:
        overrides: for example `experiment=table1,table4`, `profile=tiny`.
        store: folder of all artifacts; None selects $AMNESIA_STORE.
        results: folder for the reports.
        repair: remove damaged artifacts and rebuild them.
        detach: on a cluster, submit the jobs and return; the same request later writes the reports.
    """

    overrides: Overrides
    store: Location | None = None
    results: Location = Path("results")
    repair: bool = False
    detach: bool = False


class JobScriptsRequest(Request):
    """`job_scripts`: the batch scripts that `run` would submit, without submitting them.

    `overrides` and `store` are the same as for `run`.
    """

    overrides: Overrides
    store: Location | None = None


class CancelRequest(Request):
    """`cancel`: cancel the batch jobs of a store.

    Attributes:
        overrides: cancel only the jobs of these experiments; empty cancels all jobs of the store.
        store: folder of all artifacts; None selects $AMNESIA_STORE.
    """

    overrides: Overrides = ()
    store: Location | None = None
