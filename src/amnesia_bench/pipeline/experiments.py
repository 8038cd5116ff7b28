"""Front doors for experiments: plan the remaining stages, or run them and write the reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.pipeline.graph import Graph, build, stages_of
from amnesia_bench.pipeline.plan import Plan, plan_graphs
from amnesia_bench.pipeline.reporting import (
    ReportCall,
    check_writable,
    edited_files,
    is_current,
    mark_current,
    report_calls,
)
from amnesia_bench.pipeline.run import StageCounts, run_graph
from amnesia_bench.records.report import Report
from amnesia_bench.reporting.building import report
from amnesia_bench.requests.experiments import PlanRequest, RunRequest
from amnesia_bench.store.layout import store_root


@dataclass(frozen=True, kw_only=True)
class ReportPage:
    """A report page: its folder, and the files that this run wrote.

    Attributes:
        out: folder of the page.
        report: the report; None if an up-to-date page already existed.
        files: the files that were written, the page last.
        edited: files of an earlier page that were changed or removed since; they were rewritten.
    """

    out: Path
    report: Report | None
    files: tuple[Path, ...]
    edited: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a run: the counts of its stages, and its report pages."""

    outcome: StageCounts
    pages: tuple[ReportPage, ...]


def graphs_of(overrides: Sequence[str]) -> list[Graph]:
    """Return the graph of each experiment that the overrides select.

    Raises:
        UserError: a key, a value or an option is wrong; the message names its path.
    """
    return [build(job) for job in load_jobs(overrides)]


def plan(request: PlanRequest) -> Plan:
    """Return the stages of experiments with their states, and their costs on one GPU model.

    Raises:
        UserError: an override is wrong, the store cannot be a folder, or a training run cannot be
            distributed over its GPUs.
    """
    store = request.store or store_root()
    return plan_graphs(graphs_of(request.overrides), store, GPUS[request.gpu])


def run(request: RunRequest) -> RunResult:
    """Run every stage of the experiments that is not done yet, then write their reports.

    Raises:
        UserError: an override is wrong, or the report cannot be written.
        StageFailedError: an artifact is damaged, or a stage failed; finished stages are kept.
        NewerVersionError: a newer version made an artifact.
        MissingEnvironmentError: the store or the reports cannot be written.
    """
    store = request.store or store_root()
    graphs = graphs_of(request.overrides)
    calls = report_calls(graphs, store, request.results)
    for call in calls:
        check_writable(call)
    outcome = run_graph(store, stages_of(graphs), repair=request.repair)
    return RunResult(outcome=outcome, pages=tuple(_page(call) for call in calls))


def _page(call: ReportCall) -> ReportPage:
    if is_current(call):
        return ReportPage(out=call.out, report=None, files=(), edited=())
    edited = tuple(edited_files(call))
    written = report(call.request, call.out)
    mark_current(call, written.files)
    return ReportPage(out=call.out, report=written.report, files=written.files, edited=edited)
