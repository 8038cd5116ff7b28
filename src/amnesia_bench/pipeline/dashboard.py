"""W&B workspaces as code: one per experiment and model; the entry point is `dashboard`.

A workspace compares the table rows that `track` published: the baseline is the row +SFT, the
columns are those of the table, with their differences from the baseline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.config.tracking_schema import Tracking
from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import Graph
from amnesia_bench.pipeline.tracked.metrics import (
    CONTEXT_TOKENS,
    DELTA,
    RECALL_BY_LENGTH,
    metric_of_column,
)
from amnesia_bench.pipeline.tracked.rows import ROW, TrackedRow, rows_of_experiments
from amnesia_bench.pipeline.tracked.service import tracking_of
from amnesia_bench.pipeline.tracked.stamps import wandb_id
from amnesia_bench.records.ids import AFTER_SFT
from amnesia_bench.records.report import Column
from amnesia_bench.reporting.building import load_table
from amnesia_bench.reporting.table_layout import column_key, table_columns, task_label
from amnesia_bench.requests.experiments import DashboardRequest
from amnesia_bench.store.files import explaining_write_errors, make_folder, replace_text
from amnesia_bench.store.layout import store_of
from amnesia_bench.tracking.tracked_run import run_id_of

_WORKSPACE, _NAME_CHARACTERS = "workspace", 11  # W&B makes names of this length


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A workspace: its name, its content as W&B stores it, and its file or URL."""

    name: str
    spec: dict[str, Any]
    location: str


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """What one workspace shows: the rows of one model in one experiment."""

    experiment: str
    profile: str
    model: str
    rows: tuple[TrackedRow, ...]
    columns: tuple[Column, ...]
    trade_off: tuple[Column, Column] | None

    @property
    def name(self) -> str:
        return f"{self.experiment}, {self.model} ({self.profile})"

    @property
    def file_name(self) -> str:
        stem = f"{self.profile}-{self.experiment}-{self.model}"
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem) + ".json"

    @property
    def baseline(self) -> TrackedRow:
        """The row +SFT of the first seed and fine-tune; the first row if there is none."""
        return next((row for row in self.rows if row.method == AFTER_SFT), self.rows[0])


def dashboard(request: DashboardRequest, out: Path | None) -> list[Dashboard]:
    """Build the workspaces of experiments; write them to a folder as JSON, or push them to W&B.

    Args:
        request: the experiments, and the store whose rows were published.
        out: the folder for the files; None pushes to W&B instead. A workspace that was pushed
            before is replaced.

    Raises:
        UserError: an override is wrong, an experiment has no table, or `out` is a file.
        MissingEnvironmentError: wandb-workspaces is missing, W&B cannot be reached, or `out` cannot
            be written.
    """
    graphs = graphs_of(request.overrides)
    tracking = tracking_of(graphs)
    store = store_of(request.store)
    library = _library()
    if out is None:
        tracking = _with_entity(tracking, library)
    made = [(shown, _workspace(shown, store, tracking, library)) for shown in _comparisons(graphs)]
    if not made:
        raise UserError("the experiment has no table, so there is nothing to compare")
    if out is None:
        return [_push(shown.name, workspace, library) for shown, workspace in made]
    with explaining_write_errors(out, "the files written before it are complete"):
        make_folder(out)
        return [_write(shown, workspace, out) for shown, workspace in made]


def _library() -> SimpleNamespace:
    try:
        import wandb
        import wandb_workspaces.reports.v2 as panels
        from wandb_workspaces import expr
        from wandb_workspaces.workspaces import interface, internal
    except ImportError as error:
        raise MissingEnvironmentError(
            f"dashboards need packages that are not installed ({error})",
            hint='pip install "amnesia-bench[wandb]"',
        ) from error
    return SimpleNamespace(
        wandb=wandb, panels=panels, expr=expr, workspaces=interface, internal=internal
    )


def _comparisons(graphs: Sequence[Graph]) -> Iterator[_Comparison]:
    """Yield one comparison per experiment and model; the jobs of a sweep share one."""
    rows = rows_of_experiments(graphs)
    by_experiment = {graph.job.config.experiment.name: graph for graph in graphs}
    for experiment, graph in by_experiment.items():
        profile = graph.job.config.profile
        tables = [load_table(name, profile.report_overrides) for name in graph.reports]
        columns = {c.key: c for table in tables for c in table_columns(table)}
        trade_offs = [pair for table in tables if (pair := _trade_off(table)) is not None]
        for model in dict.fromkeys(row.model for row in graph.rows):
            of_model = [r for r in rows if r.model == model and r.experiment == experiment]
            yield _Comparison(
                experiment=experiment,
                profile=profile.name,
                model=model,
                rows=tuple(of_model),
                columns=tuple(columns.values()),
                trade_off=trade_offs[0] if trade_offs else None,
            )


def _trade_off(table: TableConfig) -> tuple[Column, Column] | None:
    """Return the columns of the trade-off figure: recall and score.

    A table without that figure has its last recall column against its first score.
    """
    columns = {column.key: column for column in table_columns(table)}
    if (figure := table.trade_off) is not None:
        return (
            columns[column_key(figure.recall, table)],
            columns[column_key(figure.score, table)],
        )
    recall = [column for column in columns.values() if column.context_tokens is not None]
    scores = [column for column in columns.values() if column.context_tokens is None]
    return (recall[-1], scores[0]) if recall and scores else None


def _workspace(
    shown: _Comparison, store: Path, tracking: Tracking, library: SimpleNamespace
) -> Any:
    expr, ws = library.expr, library.workspaces
    names = [metric_of_column(column) for column in shown.columns]
    deltas = [f"{DELTA}/{name}" for name in names]
    baseline = wandb_id(store, tracking.project, shown.baseline.run_id(store))
    workspace = ws.Workspace(
        entity=tracking.entity or "",
        project=tracking.project,
        name=shown.name,
        sections=_sections(shown, library),
        settings=ws.WorkspaceSettings(max_runs=len(shown.rows) + 1),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(
                expr.Metric("JobType") == ROW,
                expr.Config("model") == shown.model,
                expr.Config("profile") == shown.profile,
                expr.Tags().isin([shown.experiment]),
            ),
            order=[expr.Ordering(expr.Metric("CreatedTimestamp"), ascending=True)],
            pinned_columns=[
                "run:displayName",
                "config:method",
                "config:seed",
                *(f"summary:{name}" for name in (*names, *deltas)),
            ],
            baseline_run=baseline,
            pinned_runs=[baseline],
        ),
    )
    # The same name and ids each time, so that the same workspace is updated.
    name = run_id_of(store / _WORKSPACE / shown.file_name)[:_NAME_CHARACTERS]
    workspace._internal_name = f"nw-{name}-v"
    workspace._internal_runset_id = f"rows-{name}"
    numbers = count(1)
    for section in workspace.sections:
        for panel in section.panels:
            panel._id = f"panel-{next(numbers)}"
    return workspace


def _sections(shown: _Comparison, library: SimpleNamespace) -> list[Any]:
    ws, wr = library.workspaces, library.panels
    tasks = dict.fromkeys(c.task for c in shown.columns if c.context_tokens is not None)
    by_length = [
        wr.LinePlot(
            title=f"{task_label(task)} by context length",
            x=CONTEXT_TOKENS,
            y=[f"{RECALL_BY_LENGTH}/{task}"],
            range_y=(0, 1),
            log_x=True,
            title_x="context length in tokens",
            title_y="recall",
        )
        for task in tasks
    ]
    labels = {metric_of_column(c): f"{c.group} {c.label}" for c in shown.columns}
    sections = [ws.Section(name="Recall against length", panels=by_length, is_open=True)]
    if shown.trade_off is not None:
        recall, score = map(metric_of_column, shown.trade_off)
        plot = wr.ScatterPlot(
            title=f"{labels[score]} against {labels[recall]}",
            x=wr.SummaryMetric(recall),
            y=wr.SummaryMetric(score),
            range_x=(0, 1),
            range_y=(0, 1),
        )
        sections.append(ws.Section(name="Trade-off", panels=[plot], is_open=True))
    for title, prefix in (("Columns of the table", ""), ("Difference from +SFT", f"{DELTA}/")):
        bars = [
            wr.BarPlot(title=label, metrics=[f"{prefix}{name}"]) for name, label in labels.items()
        ]
        sections.append(ws.Section(name=title, panels=bars, is_open=bool(prefix)))
    return sections


def _spec(workspace: Any) -> dict[str, Any]:
    spec: dict[str, Any] = workspace._to_model().model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    return spec


def _write(shown: _Comparison, workspace: Any, out: Path) -> Dashboard:
    spec, file = _spec(workspace), out / shown.file_name
    replace_text(file, json.dumps(spec, indent=1) + "\n")
    return Dashboard(name=shown.name, spec=spec, location=str(file))


def _with_entity(tracking: Tracking, library: SimpleNamespace) -> Tracking:
    """Return the tracking config with an entity: a workspace of W&B cannot be pushed without one.

    Raises:
        MissingEnvironmentError: there is no API key, or W&B cannot be reached.
    """
    if tracking.entity is not None:
        return tracking
    with _explaining():
        entity = library.wandb.Api(timeout=30).default_entity
    if entity is None:
        raise UserError("W&B names no default entity", hint="Add tracking.entity=TEAM.")
    return tracking.model_copy(update={"entity": entity})


@contextmanager
def _explaining() -> Iterator[None]:
    """Replace W&B's errors, of which each of its parts has its own kind."""
    try:
        yield
    except Exception as error:
        raise MissingEnvironmentError(
            f"W&B: {error}",
            hint="Check WANDB_API_KEY, the network and tracking.entity, or write files with --out.",
        ) from error


def _push(name: str, workspace: Any, library: SimpleNamespace) -> Dashboard:
    internal = library.internal
    with _explaining():
        with suppress(ValueError):  # there is no view of an earlier push
            view = internal.View.from_name(
                workspace.entity, workspace.project, workspace._internal_name
            )
            workspace._internal_id = view.id
        workspace.save()
        return Dashboard(name=name, spec=_spec(workspace), location=workspace.url)
