"""From a command line to finished stages: what is to be done, and who watches it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import StageFailedError
from amnesia_bench.pipeline.bookkeeping import (
    LOG,
    StageState,
    check_intact,
    damage,
    now,
    read_failure,
    remove,
    state_of,
    write_orders,
)
from amnesia_bench.pipeline.engine import check_installed, run_stages
from amnesia_bench.pipeline.progress import Watcher
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.pipeline.warm import warm_server
from amnesia_bench.records.stages import StageOrder
from amnesia_bench.store.files import explaining_write_errors
from amnesia_bench.store.layout import stage_path

_COMPUTING = ("trained", "ranking", "recall", "answers")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How many stages were done before, and how many by this run."""

    cached: int
    done: int


def run(store: Path, stages: Sequence[Stage], *, repair: bool = False) -> Outcome:
    """Run what is not done yet of a graph.

    Args:
        store: the folder of all artifacts.
        stages: the graph, inputs before their readers.
        repair: make damaged artifacts anew instead of refusing them.

    Raises:
        StageFailedError: an artifact is damaged, or a stage failed; what was done is kept.
        MissingEnvironmentError: the store cannot be written, or Snakemake is not installed.
    """
    store = store.resolve()
    _check_artifacts(store, stages, repair=repair)
    missing = [
        stage for stage in stages if state_of(store, stage.kind, stage.id) != StageState.CACHED
    ]
    if not missing:
        return Outcome(cached=len(stages), done=0)
    check_installed()
    began, cores = now(), os.cpu_count() or 1
    threads = threads_of(stages, cores)
    with explaining_write_errors(store, "finished stages are kept"):
        write_orders(store, [_order(store, stage, threads[stage.id]) for stage in missing])
        # Importing on a machine with GPUs would hold them.
        warm = all(stage.gpus == 0 for stage in missing)
        with (
            Watcher(store, missing, of=len(stages)),
            warm_server() if warm else nullcontext() as server,
        ):
            failed = run_stages(store, missing, threads, cores, server)
    if failed is not None:
        raise _failed(store, missing, began, failed)
    return Outcome(cached=len(stages) - len(missing), done=len(missing))


def threads_of(stages: Sequence[Stage], cores: int) -> dict[str, int]:
    """Return how many cores each stage takes: a training takes all where nothing could run beside.

    It follows from the whole graph, not from what is left of it: a run that was interrupted goes
    on with as many threads, and so to the same bits.
    """
    before: dict[str, set[str]] = {}
    for stage in stages:
        before[stage.id] = {stage.id}.union(*(before[each.id] for each in stage.inputs))
    computing = [stage.id for stage in stages if stage.kind in _COMPUTING]
    return {
        stage.id: cores
        if stage.kind == "trained"
        and all(stage.id in before[each] or each in before[stage.id] for each in computing)
        else 1
        for stage in stages
    }


def _check_artifacts(store: Path, stages: Sequence[Stage], *, repair: bool) -> None:
    for stage in stages:
        if state_of(store, stage.kind, stage.id) != StageState.CACHED:
            continue
        if repair:
            if damage(store, stage.kind, stage.id):
                remove(store, stage)
        else:
            check_intact(store, stage.kind, stage.id)


def _order(store: Path, stage: Stage, threads: int) -> StageOrder:
    return StageOrder(
        id=stage.id,
        kind=stage.kind,
        command=stage.command(store),
        inputs={each.id: each.kind for each in stage.inputs},
        settings=stage.settings,
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
        f"{stage.kind} {stage.id}: {failure.said}",
        hint=f"Its log: {stage_path(store, stage.id) / LOG}\n{more}{hint}",
    )
