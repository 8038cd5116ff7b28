"""The functions `plan` and `run` for experiments, which `amnesia_bench` exports."""

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
    """A report page of a run.

    Attributes:
        out: folder of the page.
        report: the report; None if the existing page was up to date.
        files: the files that this run wrote; the last one is the page itself.
        edited: names of files of the existing page that someone had changed or removed; this run
            wrote the page again.
    """

    out: Path
    report: Report | None
    files: tuple[Path, ...]
    edited: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a run: the numbers of its stages, and its report pages."""

    outcome: StageCounts
    pages: tuple[ReportPage, ...]


def graphs_of(overrides: Sequence[str]) -> list[Graph]:
    """Return the graph of each experiment that the overrides select.

    Raises:
        UserError: a key, a value or an option is wrong; the message names its path.
    """
    return [build(job) for job in load_jobs(overrides)]


def plan(request: PlanRequest) -> Plan:
    """Return the stages of experiments with their states, and their costs on GPUs of one model.

    Raises:
        UserError: an override is wrong, the path of the store is a file, or a training run cannot
            be distributed over its GPUs.
    """
    store = request.store or store_root()
    return plan_graphs(graphs_of(request.overrides), store, GPUS[request.gpu])


def run(request: RunRequest) -> RunResult:
    """Run all unfinished stages of the experiments, then write the reports.

    Raises:
        UserError: an override is wrong, or the path of a report's folder is a file.
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
