"""The tracked run of a report: its cells and claims as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amnesia_bench.config.files import config_name
from amnesia_bench.config.tracking_schema import Tracking
from amnesia_bench.pipeline.graph import Graph
from amnesia_bench.pipeline.reporting import ReportCall, report_calls
from amnesia_bench.store.files import read_json
from amnesia_bench.tracking.tracked_run import RunHeader, TrackedRun, TrackedTable, run_id_of

REPORT = "report"
_CELL_FIELDS = ("model", "method", "column", "status", "value", "n", "theirs", "difference")
_CELL_COLUMNS = (*_CELL_FIELDS[:5], "low", "high", *_CELL_FIELDS[5:])
_CLAIM_COLUMNS = (
    "claim", "text", "verdict", "holds_in_paper", "model", "column", "estimate", "low", "high", "n",
)  # fmt: skip


def report_runs(
    graphs: Sequence[Graph], store: Path, results: Path, tracking: Tracking
) -> list[TrackedRun]:
    """Return a tracked run for each report page of a run that was written to `results`.

    Raises:
        UserError: a file of the report is damaged.
    """
    calls = report_calls(graphs, store, results)
    return [run for call in calls if (run := _run(call, graphs, tracking)) is not None]


def _run(call: ReportCall, graphs: Sequence[Graph], tracking: Tracking) -> TrackedRun | None:
    names = [config_name(table) for table in call.request.tables]
    reports = {
        name: read_json(file) for name in names if (file := call.out / f"{name}.json").is_file()
    }
    if not reports:
        return None
    experiments = dict.fromkeys(graph.job.config.experiment.name for graph in graphs)
    profile = graphs[0].job.config.profile.name
    return TrackedRun(
        header=RunHeader(
            project=tracking.project,
            entity=tracking.entity,
            run_id=run_id_of(call.out),
            name=f"report {call.out.name}",
            group=REPORT,
            job_type=REPORT,
            tags=tuple(experiments),
            config={"profile": profile, "tables": list(reports), "folder": str(call.out)},
        ),
        summary={
            f"verdicts/{name}/{verdict}".replace(" ", "_"): float(count)
            for name, report in reports.items()
            for verdict, count in Counter(claim["verdict"] for claim in report["claims"]).items()
        },
        tables=tuple(
            table
            for name, report in reports.items()
            for table in (_cells(name, report), _claims(name, report))
            if table.rows
        ),
    )


def _cells(name: str, report: dict[str, Any]) -> TrackedTable:
    def row(cell: dict[str, Any]) -> tuple[Any, ...]:
        interval = cell["interval"] or {"low": None, "high": None}
        values = [cell[field] for field in _CELL_FIELDS]
        return (*values[:5], interval["low"], interval["high"], *values[5:])

    cells = report["table"]["cells"]
    return TrackedTable(name=f"cells/{name}", columns=_CELL_COLUMNS, rows=tuple(map(row, cells)))


def _claims(name: str, report: dict[str, Any]) -> TrackedTable:
    rows = tuple(
        (
            claim["id"],
            claim["text"],
            condition["verdict"],
            str(claim["holds_in_paper"]),
            *(condition[field] for field in ("model", "column", "estimate", "low", "high", "n")),
        )
        for claim in report["claims"]
        for condition in claim["conditions"]
    )
    return TrackedTable(name=f"claims/{name}", columns=_CLAIM_COLUMNS, rows=rows)
