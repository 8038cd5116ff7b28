"""Requests for experiments: plan, run, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveInt

from amnesia_bench.config.cluster_schema import GpuName
from amnesia_bench.config.schema import Frozen
from amnesia_bench.requests.base import Location, Request

Overrides = tuple[str, ...]
ExportFormat = Literal["lm-eval", "hub-eval-results", "every-eval-ever"]
EXPORT_FORMATS: tuple[str, ...] = get_args(ExportFormat)


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


class LabelledAnalysis(Frozen):
    """A folder that `analyze` wrote, with the model, fine-tune and seed under which it is reported.

    `finetune` is None for an analysis of the checkpoint before fine-tuning, or of data only.
    """

    folder: Location
    model: str
    finetune: str | None = None
    seed: str = "0"


class ReportRequest(Request):
    """`report`: fill the paper's tables with measured cells, next to the paper's numbers.

    Attributes:
        tables: names of configs in configs/report, or paths of your own config files.
        sources: folders of measured cells.
        overrides: overrides for every table config, for example `report.models=[tiny]`.
        drift: files with the measured drift of W_Q and W_K; each file becomes one curve.
        notes: remarks to show first among the notes of the report.
        analyses: folders of analyses of why recall is lost.
    """

    tables: Annotated[tuple[str, ...], Field(min_length=1)]
    sources: tuple[LabelledCells, ...] = ()
    overrides: Overrides = ()
    drift: tuple[LabelledDrift, ...] = ()
    notes: tuple[str, ...] = ()
    analyses: tuple[LabelledAnalysis, ...] = ()


class ExportRequest(Request):
    """`export`: write cells and answers in the format of another tool or of a public collection.

    `sources` are folders of measured cells, or whole stores.
    """

    format: ExportFormat
    sources: Annotated[tuple[LabelledCells, ...], Field(min_length=1)]


class PlanRequest(Request):
    """`plan`: estimate the cost of experiments without running any stage.

    Attributes:
        overrides: the same as for `run`.
        gpu: the model of the GPUs.
        gpus: the number of GPUs for which the wall time is estimated; None omits it.
        store: folder of all artifacts; None selects $AMNESIA_STORE.
    """

    overrides: Overrides
    gpu: GpuName = "h100"
    gpus: PositiveInt | None = None
    store: Location | None = None


class ExplainStageRequest(Request):
    """`explain_stage`: explain why a stage of experiments is not a cache hit.

    `overrides` and `store` are the same as for `plan`. `stage` is an id, or an id without its hash,
    with or without the kind.
    """

    overrides: Overrides
    stage: str
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


class FetchRequest(Request):
    """`fetch`: fetch all models and data that the unfinished stages read from a network.

    Attributes:
        overrides: the same as for `run`.
        store: folder of all artifacts; None selects $AMNESIA_STORE.
        dry_run: only list what would be fetched, with sizes.
    """

    overrides: Overrides
    store: Location | None = None
    dry_run: bool = False


class AdoptRequest(Request):
    """`adopt`: use your own checkpoint instead of the checkpoint that a stage makes.

    Attributes:
        stage: name or id of a stage of the experiments, for example `sft_miromind_2b-s0`.
        checkpoint: folder of the checkpoint.
        overrides: the experiments; the same as for `run`.
        store: folder of all artifacts; None selects $AMNESIA_STORE.
    """

    stage: str
    checkpoint: Location
    overrides: Overrides
    store: Location | None = None


class CollectRequest(Request):
    """`collect`: copy the finished evaluations of experiments from stores into another store.

    Attributes:
        overrides: the experiments; the same as for `run`.
        sources: the stores.
        store: the store to which they are copied; None selects $AMNESIA_STORE.
    """

    overrides: Overrides
    sources: Annotated[tuple[Location, ...], Field(min_length=1)]
    store: Location | None = None


class DoctorRequest(Request):
    """`doctor`: examine what this machine can do.

    Attributes:
        store: the store whose file system to examine; None selects $AMNESIA_STORE.
        gpu: also compile and tune the kernels of the paper's models on the GPU, for minutes.
    """

    store: Location | None = None
    gpu: bool = False


class TrackRequest(Request):
    """`track`: publish finished stages, table rows and reports to a tracking service.

    `overrides`, `store` and `results` are the same as for `run`; `tracking=wandb` or
    `tracking=trackio` among the overrides selects the service.
    """

    overrides: Overrides
    store: Location | None = None
    results: Location = Path("results")


class DashboardRequest(Request):
    """`dashboard`: W&B workspaces that compare the rows of experiments.

    `overrides` and `store` are the same as for `track`.
    """

    overrides: Overrides
    store: Location | None = None
