"""From a graph to finished stages: what is to be done, by whom, and who watches."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
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
    """How many stages were done before, by this run, and by other runs meanwhile."""

    cached: int
    done: int
    by_others: int = 0


def run_graph(store: Path, stages: Sequence[Stage], *, repair: bool = False) -> StageCounts:
    """Run what is not done yet of a graph, or was made of inputs that hold something else now.

    Args:
        store: the folder of all artifacts.
        stages: the graph, inputs before their readers.
        repair: remove damaged artifacts and make them again instead of refusing them.

    Raises:
        StageFailedError: an artifact is damaged, or a stage failed; what was done is kept.
        NewerVersionError: a newer version made an artifact.
        MissingEnvironmentError: the store cannot be read or written.
    """
    store = store.resolve()
    _check_artifacts(store, stages, repair=repair)
    _note_inputs(store, stages)
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
        # Importing on a machine with GPUs would hold them.
        warm = all(stage.gpus == 0 for stage in todo)
        with (
            scratch_folder() as folder,
            Watcher(store, todo, cached, of=len(stages)),
            fork_server(folder) if warm else nullcontext() as server,
        ):
            ran = run_stages(store, todo, threads, cores, gpus, server)
    if ran.failed is not None:
        raise _failed(store, todo, began, ran.failed)
    before = len(cached - ran.done)
    return StageCounts(
        cached=before, done=len(ran.done), by_others=len(stages) - before - len(ran.done)
    )


def _note_inputs(store: Path, stages: Sequence[Stage]) -> None:
    """Note what the inputs of finished stages hold, where an earlier version did not."""
    with explaining_write_errors(store, "finished stages are kept"):
        for stage in stages:
            inputs = {each.id: each.kind for each in stage.inputs}
            done = state_of(store, stage.kind, stage.id) is StageState.CACHED
            contents = contents_of(store, inputs)
            # What an input held that is not there now, nobody knows.
            known = bool(contents) and None not in contents.values()
            if done and known and read_inputs(store, stage.id) is None:
                write_inputs(store, stage.id, contents)


def _tell_stale(store: Path, stages: Sequence[Stage]) -> None:
    for stage in stages:
        others = ", ".join(changed_inputs(store, stage.id))
        sys.stderr.write(
            f"{stage.id}: stale, since {others} holds something else than when it was "
            "made: it is made again\n"
        )


def threads_of(stages: Sequence[Stage], cores: int) -> dict[str, int]:
    """Return how many cores each stage takes.

    A training takes all where nothing could run beside it, and what runs several processes at once
    takes half, so that something else can. It follows from the whole graph, not from what is left
    of it: a run that was interrupted goes on with as many threads, and so to the same bits.
    """
    before: dict[str, set[str]] = {}
    for stage in stages:
        before[stage.id] = {stage.id}.union(*(before[each.id] for each in stage.inputs))
    computing = [stage.id for stage in stages if stage.kind in _COMPUTING]

    def threads(stage: Stage) -> int:
        if stage.many_processes:
            return max(1, cores // 2)
        alone = all(stage.id in before[each] or each in before[stage.id] for each in computing)
        return cores if stage.kind == "trained" and alone else 1

    return {stage.id: threads(stage) for stage in stages}


def _check_artifacts(store: Path, stages: Sequence[Stage], *, repair: bool) -> None:
    for stage in stages:
        state = state_of(store, stage.kind, stage.id)
        if state is StageState.STALE:
            damage(store, stage.kind, stage.id)  # is made again, unless that cannot be known
        elif state is StageState.CACHED and not repair:
            check_intact(store, stage.kind, stage.id)
        elif state is StageState.CACHED and (found := damage(store, stage.kind, stage.id)):
            what = "; ".join(f"{finding.path} {finding.problem}" for finding in found)
            sys.stderr.write(message(f"{stage.id}: {what}: it is made again\n"))
            remove(store, stage)


def _spec(store: Path, stage: Stage, threads: int) -> StageSpec:
    # Not more than this process may use, which a container or SLURM may have limited.
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


def _failed(store: Path, stages: Sequence[Stage], began: str, said: str) -> StageFailedError:
    found = ((stage, read_failure(store, stage.id)) for stage in stages)
    failures = [(stage, each) for stage, each in found if each is not None and each.ended >= began]
    hint = "The same command goes on with what is left."
    if not failures:
        return StageFailedError(
            f"the run ended before all stages were done. {said}".rstrip(), hint=hint
        )
    (stage, failure), *others = failures
    more = f"{len(others)} more failed: amnesia status lists them.\n" if others else ""
    return StageFailedError(
        f"{stage.id}: {failure.said}",
        hint=f"Its log: {stage_path(store, stage.id) / LOG}\n{more}{hint}",
    )
