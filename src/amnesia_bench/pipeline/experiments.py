"""Front doors for experiments: plan what is left to do, or do it and report."""

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
    """A page of results: its folder, and what was written this time.

    Attributes:
        out: the folder.
        report: what the page shows; None if it was there already, made of the same cells.
        files: those that were written, the page last.
        edited: files of an earlier page that somebody changed or removed; they were written again.
    """

    out: Path
    report: Report | None
    files: tuple[Path, ...]
    edited: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run did: the counts of its stages, and its pages."""

    outcome: StageCounts
    pages: tuple[ReportPage, ...]


def graphs_of(overrides: Sequence[str]) -> list[Graph]:
    """Return the graph of each experiment that overrides ask for.

    Raises:
        UserError: a key, a value or an option is wrong; the message names its path.
    """
    return [build(job) for job in load_jobs(overrides)]


def plan(request: PlanRequest) -> Plan:
    """Return what there is to do for some experiments, and what it takes on GPUs of a kind.

    Raises:
        UserError: an override is wrong, the store cannot be a folder, or a training cannot be
            spread over its GPUs.
    """
    store = request.store or store_root()
    return plan_graphs(graphs_of(request.overrides), store, GPUS[request.gpu])


def run(request: RunRequest) -> RunResult:
    """Run every stage of some experiments that is not done yet, then write their reports.

    Raises:
        UserError: an override is wrong, or no report could be written.
        StageFailedError: an artifact is damaged, or a stage failed; what was done is kept.
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
