"""Run a graph: check its artifacts, find the stages to run, run them, and report failures."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.config.cluster_schema import LocalCluster, SlurmCluster
from amnesia_bench.errors import MissingEnvironmentError, StageFailedError
from amnesia_bench.pipeline.adopted import adopted_from, is_collected, needed_stages
from amnesia_bench.pipeline.bookkeeping import (
    LOG,
    StageState,
    changed_inputs,
    check_intact,
    contents_of,
    damage,
    is_merged,
    read_failure,
    read_inputs,
    remove,
    state_of,
    write_inputs,
)
from amnesia_bench.pipeline.command_lines import command_line
from amnesia_bench.pipeline.environments import check_environments, python_words, runs_vllm
from amnesia_bench.pipeline.fork_server import fork_server
from amnesia_bench.pipeline.progress import Watcher
from amnesia_bench.pipeline.scheduler import SchedulerResult, run_stages
from amnesia_bench.pipeline.slurm.driver import SlurmRun
from amnesia_bench.pipeline.specs import older_note, write_specs
from amnesia_bench.pipeline.stage import Stage, unsettled
from amnesia_bench.printable import message
from amnesia_bench.records.stages import StageFailure, StageSpec
from amnesia_bench.store.files import explaining_write_errors, nearest_existing, owner_of
from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.scratch import scratch_folder

_THIS_MACHINE = LocalCluster(kind="local")
_COMPUTING = ("trained", "layer_scores", "ranking", "recall", "answers")


@dataclass(frozen=True, kw_only=True)
class StageCounts:
    """The numbers of stages that were already done, run by this run, and run by other processes.

    `submitted` is the number of jobs that a run submitted without waiting for them, else None.
    `without_job` is the number of stages for which SLURM accepted no job, because the user has too
    many.
    """

    cached: int
    done: int
    by_others: int = 0
    submitted: int | None = None
    without_job: int = 0


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run a graph.

    Attributes:
        cluster: where to run the stages.
        repair: remove damaged artifacts and rebuild them instead of raising an error.
        detach: on a SLURM cluster, submit the jobs and do not wait for them.
    """

    cluster: LocalCluster | SlurmCluster = _THIS_MACHINE
    repair: bool = False
    detach: bool = False


_DEFAULTS = RunOptions()


def run_graph(store: Path, stages: Sequence[Stage], options: RunOptions = _DEFAULTS) -> StageCounts:
    """Run the stages of a graph that are not done or whose inputs have changed.

    Args:
        store: the folder of all artifacts.
        stages: all stages of the graph, each after its inputs.
        options: how to run them.

    Raises:
        UserError: SLURM refuses a job.
        StageFailedError: an artifact is damaged, or a stage failed; finished stages are kept.
        NewerVersionError: a newer version made an artifact.
        MissingEnvironmentError: the store cannot be read or written, or SLURM or the Python of a
            stage is missing.
    """
    store = store.resolve()
    stages = needed_stages(store, stages)
    _check_artifacts(store, stages, repair=options.repair)
    _record_inputs(store, stages)
    states = {stage.id: state_of(store, stage.kind, stage.id) for stage in stages}
    cached = {id for id, state in states.items() if state is StageState.CACHED}
    if len(cached) == len(stages):
        return StageCounts(cached=len(stages), done=0)
    if not cached and (note := older_note(store)) is not None:
        sys.stderr.write(message(f"note: {note}\n"))
    _tell_stale(store, [stage for stage in stages if states[stage.id] is StageState.STALE])
    todo = unsettled(stages, cached)
    _check_writable(store, todo)
    cluster = options.cluster
    check_environments(todo, cluster)
    # Other machines' clocks may differ, so the failures of this run are those that are new.
    earlier = {stage.id: read_failure(store, stage.id) for stage in todo}
    # The cores of the machines that run the stages, which need not be those of this machine.
    cores = cluster.cpus_per_node if isinstance(cluster, SlurmCluster) else os.cpu_count() or 1
    threads = threads_of(stages, cores)
    with explaining_write_errors(store, "finished stages are kept"):
        write_specs(store, [_spec(store, stage, threads[stage.id], cluster) for stage in todo])
        if isinstance(cluster, SlurmCluster):
            jobs = _submitted(store, todo, threads, cluster)
            if options.detach:
                return StageCounts(
                    cached=len(cached),
                    done=0,
                    submitted=len(jobs.submitted),
                    without_job=jobs.without_job,
                )
            with Watcher(store, todo, cached, of=len(stages)):
                result = jobs.wait()
        else:
            with Watcher(store, todo, cached, of=len(stages)):
                gpus = max(stage.gpus for stage in stages)
                result = _run_here(store, todo, threads, (cores, gpus), cluster)
    if result.failed is not None:
        raise _failed(store, earlier, result.failed)
    unchanged, done = len(cached - result.done), len(result.done)
    return StageCounts(cached=unchanged, done=done, by_others=len(stages) - unchanged - done)


def _run_here(
    store: Path,
    todo: Sequence[Stage],
    threads: Mapping[str, int],
    cores_and_gpus: tuple[int, int],
    cluster: LocalCluster,
) -> SchedulerResult:
    """Run stages on this machine."""
    # With GPUs, no fork server is used, because the packages that it imports would occupy them.
    use_server = all(stage.gpus == 0 for stage in todo)
    with (
        scratch_folder() as folder,
        fork_server(folder) if use_server else nullcontext() as server,
    ):
        workers = {stage.id: _worker_options(stage, cluster, server) for stage in todo}
        return run_stages(store, todo, threads, *cores_and_gpus, workers)


def _worker_options(stage: Stage, cluster: LocalCluster, server: str | None) -> list[str]:
    if runs_vllm(stage):
        return ["--python", shlex.join(python_words(stage, cluster))]
    return [] if server is None else ["--server", server]


def _submitted(
    store: Path, todo: Sequence[Stage], threads: Mapping[str, int], cluster: SlurmCluster
) -> SlurmRun:
    jobs = SlurmRun(store, todo, threads, cluster)
    jobs.check_partition()
    jobs.print_time_limit_notes()
    jobs.submit()
    new = len(jobs.submitted)
    sys.stderr.write(f"Submitted {new} jobs; {len(jobs.known) - new} were in the queue before.\n")
    return jobs


def _record_inputs(store: Path, stages: Sequence[Stage]) -> None:
    """Record the inputs of finished stages whose inputs an earlier version did not record."""
    with explaining_write_errors(store, "finished stages are kept"):
        for stage in stages:
            if is_merged(store, stage.kind, stage.id):
                continue
            inputs = {read.id: read.kind for read in stage.inputs}
            done = state_of(store, stage.kind, stage.id) is StageState.CACHED
            contents = contents_of(store, inputs)
            # The contents of an input that is now missing are unknown.
            known = bool(contents) and None not in contents.values()
            if done and known and read_inputs(store, stage.id) is None:
                write_inputs(store, stage.id, contents)


def _check_writable(store: Path, stages: Sequence[Stage]) -> None:
    """Check that this user may write wherever the stages write, before any of them starts.

    Raises:
        MissingEnvironmentError: a folder belongs to someone else, or its file system is read-only.
    """
    folders = [store, *(stage_path(store, stage.id) for stage in stages)]
    folders += [stage.folder(store).parent for stage in stages]
    for folder in dict.fromkeys(map(nearest_existing, folders)):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise MissingEnvironmentError(
                f"{folder}: no permission to write, so no stage was started; the folder belongs to "
                f"{owner_of(folder)}",
                hint="Use a store of your own: --store or $AMNESIA_STORE. To share this one, its "
                "owner gives a group of both users write permission to all of its folders.",
            )


def _tell_stale(store: Path, stages: Sequence[Stage]) -> None:
    for stage in stages:
        changed = ", ".join(changed_inputs(store, stage.id))
        sys.stderr.write(f"{stage.id}: stale, its input {changed} has changed: rebuilding it\n")


def threads_of(stages: Sequence[Stage], cores: int) -> dict[str, int]:
    """Return the number of CPU cores for each stage, by the stage's id.

    A training stage uses all cores if no other computing stage can run at the same time. A stage
    with several processes uses half of the cores. All other stages use one core. The numbers depend
    on all stages of the graph and not only on pending stages, so that a resumed run uses the same
    number of threads and therefore computes the same bits.
    """
    ancestors: dict[str, set[str]] = {}  # for each stage, including the stage itself
    for stage in stages:
        ancestors[stage.id] = {stage.id}.union(*(ancestors[read.id] for read in stage.inputs))
    computing = [stage.id for stage in stages if stage.kind in _COMPUTING]

    def threads(stage: Stage) -> int:
        if stage.many_processes:
            return max(1, cores // 2)
        alone = all(
            stage.id in ancestors[other] or other in ancestors[stage.id] for other in computing
        )
        return cores if stage.kind == "trained" and alone else 1

    return {stage.id: threads(stage) for stage in stages}


def _check_artifacts(store: Path, stages: Sequence[Stage], *, repair: bool) -> None:
    for stage in stages:
        if is_merged(store, stage.kind, stage.id):
            continue
        state = state_of(store, stage.kind, stage.id)
        if state is StageState.STALE:
            damage(store, stage.kind, stage.id)  # raises an error if it must not be replaced
        elif state is StageState.CACHED and adopted_from(store, stage) is not None:
            _check_foreign(store, stage, "adopted", "adopt your checkpoint again")
        elif state is StageState.CACHED and is_collected(store, stage):
            _check_foreign(store, stage, "collected", "run `amnesia collect` again")
        elif state is StageState.CACHED and not repair:
            check_intact(store, stage.kind, stage.id)
        elif state is StageState.CACHED and (findings := damage(store, stage.kind, stage.id)):
            problems = "; ".join(f"{finding.path} {finding.problem}" for finding in findings)
            sys.stderr.write(message(f"{stage.id}: {problems}: rebuilding it\n"))
            remove(store, stage)


def _check_foreign(store: Path, stage: Stage, was: str, again: str) -> None:
    """Check an artifact from elsewhere; it is never removed, as no stage of the graph can make it.

    `was` says how it came into the store, and `again` how it can be put there again.
    """
    if findings := damage(store, stage.kind, stage.id):
        problems = "; ".join(f"{finding.path} {finding.problem}" for finding in findings)
        folder = stage.folder(store)
        raise StageFailedError(
            f"{folder}: was {was}, and has been damaged or edited since: {problems}",
            hint=f"Remove it: rm -r {shlex.quote(str(folder))}. Then {again}; "
            "without it, the next run computes the stage and its inputs.",
        )


def _spec(
    store: Path, stage: Stage, threads: int, cluster: LocalCluster | SlurmCluster
) -> StageSpec:
    if isinstance(cluster, LocalCluster):
        # A container or SLURM may restrict this process to some of the machine's cores.
        threads = min(threads, len(os.sched_getaffinity(0)))
    request = stage.request
    if stage.many_processes:
        request = request.model_copy(update={"workers": threads})
    out = stage.location / request.out_file
    return StageSpec(
        id=stage.id,
        kind=stage.kind,
        front_door=request.front_door,
        request=request.model_dump(mode="json"),
        command=command_line(request.below(store), store / out),
        inputs={read.id: read.kind for read in stage.inputs},
        threads=threads,
        gpus=stage.gpus,
    )


def _failed(
    store: Path, earlier: Mapping[str, StageFailure | None], stderr: str
) -> StageFailedError:
    records = ((id, read_failure(store, id)) for id in earlier)
    failures = [
        (id, failure) for id, failure in records if failure is not None and failure != earlier[id]
    ]
    hint = "Run the same command again to resume."
    if not failures:
        return StageFailedError(
            f"the run ended before all stages were done. {stderr}".rstrip(), hint=hint
        )
    (id, failure), *others = failures
    more = f"{len(others)} more failed: amnesia status lists them.\n" if others else ""
    return StageFailedError(
        f"{id}: {failure.said}",
        hint=f"Its log: {stage_path(store, id) / LOG}\n{more}{hint}",
    )
