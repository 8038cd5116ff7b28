"""The functions for experiments that `amnesia_bench` exports: `plan`, `run` and others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.config.cluster_schema import LocalCluster, SlurmCluster
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.pipeline.adopted import needed_stages
from amnesia_bench.pipeline.bookkeeping import StageState, state_of
from amnesia_bench.pipeline.cache_miss import CacheMiss, explain
from amnesia_bench.pipeline.graph import Graph, build, stages_of
from amnesia_bench.pipeline.plan import Plan, plan_graphs
from amnesia_bench.pipeline.reporting import (
    ReportCall,
    check_writable,
    edited_files,
    is_current,
    mark_current,
    measured_part,
    report_calls,
)
from amnesia_bench.pipeline.run import RunOptions, StageCounts, run_graph, threads_of
from amnesia_bench.pipeline.slurm.driver import SlurmRun
from amnesia_bench.pipeline.slurm.jobs import SlurmJob, cancel_jobs, jobs_of
from amnesia_bench.pipeline.stage import Stage, unsettled
from amnesia_bench.pipeline.tracked.background import publishing_stages
from amnesia_bench.pipeline.tracked.service import check_installed, tracking_of
from amnesia_bench.records.report import Report
from amnesia_bench.reporting.building import REPORT, report
from amnesia_bench.requests.experiments import (
    CancelRequest,
    ExplainStageRequest,
    JobScriptsRequest,
    PlanRequest,
    RunRequest,
)
from amnesia_bench.store.layout import store_of

log = logging.getLogger(__name__)


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
        UserError: an override is wrong, the path of the store is a file, a training run cannot be
            distributed over its GPUs, or a stage needs more than `gpus` GPUs.
    """
    store = store_of(request.store)
    return plan_graphs(graphs_of(request.overrides), store, GPUS[request.gpu], request.gpus)


def explain_stage(request: ExplainStageRequest) -> CacheMiss:
    """Explain why a stage is not a cache hit: how it differs from the nearest finished stage.

    Raises:
        UserError: an override is wrong, or the experiments have no such stage.
    """
    stages = stages_of(graphs_of(request.overrides))
    return explain(store_of(request.store), stages, request.stage)


def run(request: RunRequest) -> RunResult:
    """Run all unfinished stages of the experiments, then write the reports.

    If a stage fails, the reports of the finished evaluations are written before the error is
    raised.

    Raises:
        UserError: an override is wrong, `detach` is set without a batch system, the path of a
            report's folder is a file, or SLURM refuses a job.
        StageFailedError: an artifact is damaged, or a stage failed; finished stages are kept.
        NewerVersionError: a newer version made an artifact.
        MissingEnvironmentError: the store or the reports cannot be written, or SLURM or the package
            of the tracking service is missing.
    """
    store = store_of(request.store)
    graphs = graphs_of(request.overrides)
    calls = report_calls(graphs, store, request.results)
    for call in calls:
        check_writable(call)
    options = RunOptions(cluster=cluster_of(graphs), repair=request.repair, detach=request.detach)
    if options.detach and not isinstance(options.cluster, SlurmCluster):
        raise UserError(
            "--detach: cluster=local runs stages itself and submits no jobs",
            hint="Add cluster=slurm, or leave --detach out.",
        )
    stages = stages_of(graphs)
    with _publishing(request, graphs, store, stages):
        try:
            outcome = run_graph(store, stages, options)
        except StageFailedError as error:
            raise _with_partial_reports(error, calls) from error
        if outcome.submitted is not None:
            return RunResult(outcome=outcome, pages=())
        return RunResult(outcome=outcome, pages=tuple(_page(call) for call in calls))


def _publishing(
    request: RunRequest, graphs: Sequence[Graph], store: Path, stages: Sequence[Stage]
) -> AbstractContextManager[None]:
    """Publish stages while they run, if a tracking service is selected."""
    tracking = tracking_of(graphs)
    check_installed(tracking)
    if tracking.service is None:
        return nullcontext()
    command = [*request.overrides, f"--store={store}", f"--out={request.results.resolve()}"]
    return publishing_stages(command, store, stages)


def job_scripts(request: JobScriptsRequest) -> dict[str, str]:
    """Return the batch scripts of all unfinished stages, by the id of the stage; submit nothing.

    The notes that `run` prints before it submits jobs are printed.

    Raises:
        UserError: an override is wrong, the cluster has no batch system, or its partition allows
            less time than a job requests.
    """
    store = store_of(request.store)
    graphs = graphs_of(request.overrides)
    cluster = cluster_of(graphs)
    if not isinstance(cluster, SlurmCluster):
        raise UserError(
            "cluster=local runs stages itself and submits no jobs",
            hint="Add cluster=slurm to see the batch scripts, or run `amnesia plan ...`.",
        )
    stages = needed_stages(store, stages_of(graphs))
    states = {stage.id: state_of(store, stage.kind, stage.id) for stage in stages}
    todo = unsettled(stages, {id for id, s in states.items() if s is StageState.CACHED})
    threads = threads_of(stages, cluster.cpus_per_node)
    jobs = SlurmRun(store, todo, threads, cluster)
    if todo:
        jobs.print_time_limit_notes()
        try:
            jobs.check_partition()
        except MissingEnvironmentError:  # scripts can also be written where there is no SLURM
            log.warning("the partition's time limit is unknown here, so it was not checked")
    return jobs.scripts()


def cancel(request: CancelRequest) -> tuple[SlurmJob, ...]:
    """Cancel the SLURM jobs of a store, and return them.

    Running stages save their state if SLURM gives them time to, so a later run resumes them.

    Raises:
        UserError: an override is wrong.
        StageFailedError, MissingEnvironmentError: SLURM does not answer, or is not installed.
    """
    jobs = jobs_of(store_of(request.store))
    if request.overrides:
        ids = {stage.id for stage in stages_of(graphs_of(request.overrides))}
        jobs = {stage: job for stage, job in jobs.items() if stage in ids}
    cancel_jobs(jobs.values())
    return tuple(jobs.values())


def cluster_of(graphs: Sequence[Graph]) -> LocalCluster | SlurmCluster:
    """Return the cluster of a command's experiments.

    Raises:
        UserError: they select several clusters.
    """
    clusters = list(dict.fromkeys(graph.job.config.cluster for graph in graphs))
    if len(clusters) > 1:
        raise UserError(
            "cluster: several clusters are selected", hint="Run one command for each cluster."
        )
    return clusters[0]


def _with_partial_reports(error: StageFailedError, calls: Sequence[ReportCall]) -> StageFailedError:
    """Write the reports of the finished evaluations; return the error with their paths."""
    written = []
    for call in calls:
        part = measured_part(call, f"The run failed: {error}")
        if part.sources:
            written.append(_page(part).out / REPORT)
    if not written:
        return error
    pages = "\n".join(f"The report of the finished evaluations: {page}" for page in written)
    return StageFailedError(error.what, hint=f"{error.hint}\n{pages}" if error.hint else pages)


def _page(call: ReportCall) -> ReportPage:
    if is_current(call):
        return ReportPage(out=call.out, report=None, files=(), edited=())
    edited = tuple(edited_files(call))
    written = report(call.request, call.out)
    mark_current(call, written.files)
    return ReportPage(out=call.out, report=written.report, files=written.files, edited=edited)
