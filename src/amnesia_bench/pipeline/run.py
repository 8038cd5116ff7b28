"""Run a graph: check its artifacts, find the stages to run, run them, and report failures."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import StageFailedError
from amnesia_bench.pipeline.bookkeeping import (
    LOG,
    StageState,
    changed_inputs,
    check_intact,
    contents_of,
    damage,
    now,
    read_failure,
    read_inputs,
    remove,
    state_of,
    write_inputs,
)
from amnesia_bench.pipeline.command_lines import command_line
from amnesia_bench.pipeline.fork_server import fork_server
from amnesia_bench.pipeline.progress import Watcher
from amnesia_bench.pipeline.scheduler import run_stages
from amnesia_bench.pipeline.specs import older_note, write_specs
from amnesia_bench.pipeline.stage import Stage, unsettled
from amnesia_bench.printable import message
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.store.files import explaining_write_errors
from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.scratch import scratch_folder

_COMPUTING = ("trained", "ranking", "recall", "answers")


@dataclass(frozen=True, kw_only=True)
class StageCounts:
    """The numbers of stages that were already done, run by this run, and run by other processes."""

    cached: int
    done: int
    by_others: int = 0


def run_graph(store: Path, stages: Sequence[Stage], *, repair: bool = False) -> StageCounts:
    """Run the stages of a graph that are not done or whose inputs have changed.

    Args:
        store: the folder of all artifacts.
        stages: all stages of the graph, each after its inputs.
        repair: remove damaged artifacts and rebuild them instead of raising an error.

    Raises:
        StageFailedError: an artifact is damaged, or a stage failed; finished stages are kept.
        NewerVersionError: a newer version made an artifact.
        MissingEnvironmentError: the store cannot be read or written.
    """
    store = store.resolve()
    _check_artifacts(store, stages, repair=repair)
    _record_inputs(store, stages)
    states = {stage.id: state_of(store, stage.kind, stage.id) for stage in stages}
    cached = {id for id, state in states.items() if state is StageState.CACHED}
    if len(cached) == len(stages):
        return StageCounts(cached=len(stages), done=0)
    if not cached and (note := older_note(store)) is not None:
        sys.stderr.write(message(f"note: {note}\n"))
    _tell_stale(store, [stage for stage in stages if states[stage.id] is StageState.STALE])
    todo = unsettled(stages, cached)
    began, cores = now(), os.cpu_count() or 1
    threads = threads_of(stages, cores)
    gpus = max(stage.gpus for stage in stages)
    with explaining_write_errors(store, "finished stages are kept"):
        write_specs(store, [_spec(store, stage, threads[stage.id]) for stage in todo])
        with (
            scratch_folder() as folder,
            Watcher(store, todo, cached, of=len(stages)),
            fork_server(folder) as server,
        ):
            result = run_stages(store, todo, threads, cores, gpus, server)
    if result.failed is not None:
        raise _failed(store, todo, began, result.failed)
    unchanged, done = len(cached - result.done), len(result.done)
    return StageCounts(cached=unchanged, done=done, by_others=len(stages) - unchanged - done)


def _record_inputs(store: Path, stages: Sequence[Stage]) -> None:
    """Record the inputs of finished stages whose inputs an earlier version did not record."""
    with explaining_write_errors(store, "finished stages are kept"):
        for stage in stages:
            inputs = {read.id: read.kind for read in stage.inputs}
            done = state_of(store, stage.kind, stage.id) is StageState.CACHED
            contents = contents_of(store, inputs)
            # The contents of an input that is now missing are unknown.
            known = bool(contents) and None not in contents.values()
            if done and known and read_inputs(store, stage.id) is None:
                write_inputs(store, stage.id, contents)


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
        state = state_of(store, stage.kind, stage.id)
        if state is StageState.STALE:
            damage(store, stage.kind, stage.id)  # raises an error if it must not be replaced
        elif state is StageState.CACHED and not repair:
            check_intact(store, stage.kind, stage.id)
        elif state is StageState.CACHED and (findings := damage(store, stage.kind, stage.id)):
            problems = "; ".join(f"{finding.path} {finding.problem}" for finding in findings)
            sys.stderr.write(message(f"{stage.id}: {problems}: rebuilding it\n"))
            remove(store, stage)


def _spec(store: Path, stage: Stage, threads: int) -> StageSpec:
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


def _failed(store: Path, stages: Sequence[Stage], began: str, stderr: str) -> StageFailedError:
    records = ((stage, read_failure(store, stage.id)) for stage in stages)
    failures = [
        (stage, failure)
        for stage, failure in records
        if failure is not None and failure.ended >= began
    ]
    hint = "Run the same command again to resume."
    if not failures:
        return StageFailedError(
            f"the run ended before all stages were done. {stderr}".rstrip(), hint=hint
        )
    (stage, failure), *others = failures
    more = f"{len(others)} more failed: amnesia status lists them.\n" if others else ""
    return StageFailedError(
        f"{stage.id}: {failure.said}",
        hint=f"Its log: {stage_path(store, stage.id) / LOG}\n{more}{hint}",
    )
