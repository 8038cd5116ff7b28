"""Copy the finished evaluations of experiments from several stores into one without checkpoints.

A long experiment can be computed seed by seed, on machines that keep nothing: its evaluations and
its analyses are small, and all that reports read. Both are called evaluations here. A collected
evaluation counts as done and needs no checkpoint, so `run` on the store to which all seeds were
copied computes nothing and writes the report.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.pipeline.adopted import adoption_notes, mark_collected, needed_stages
from amnesia_bench.pipeline.bookkeeping import StageState, check_intact, contents_of, state_of
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import Graph
from amnesia_bench.pipeline.reporting import RESTORATION, drift_file
from amnesia_bench.pipeline.stage import Stage, closure
from amnesia_bench.requests.experiments import CollectRequest
from amnesia_bench.store.files import explaining_write_errors, make_folder
from amnesia_bench.store.hashing import is_finished, verify_manifest
from amnesia_bench.store.layout import leftover_paths, new_working_path, stage_path, store_of
from amnesia_bench.store.lease import holding_lease


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The ids of evaluations: copied, in the store before, and finished in none of the stores."""

    store: Path
    copied: tuple[str, ...]
    present: tuple[str, ...]
    missing: tuple[str, ...]


def collect(request: CollectRequest) -> Collected:
    """Copy the finished evaluations of experiments into a store, each complete or not at all.

    What is in the store already is kept, so an interrupted call can be repeated.

    Raises:
        UserError: an override is wrong, a store does not exist, or two stores have different
            results of one evaluation; nothing was copied.
        StageFailedError: an evaluation is damaged, or the disk is full.
        BusyError: another process is writing the same evaluation.
    """
    target = store_of(request.store)
    sources = [source.resolve() for source in request.sources]
    for source in sources:
        if not source.is_dir():
            raise UserError(
                f"{source}: no such store",
                hint="Pass the folder that was --store or $AMNESIA_STORE in those runs.",
            )
    graphs = graphs_of(request.overrides)
    evaluations = {stage.id: stage for graph in graphs for stage in _evaluations(graph)}
    found = {id: _stores_with(stage, [target, *sources]) for id, stage in evaluations.items()}
    for id, stores in found.items():
        _check_equal(evaluations[id], stores)
    copied = [id for id, stores in found.items() if stores and target not in stores]
    with explaining_write_errors(target, "the evaluations copied before it are complete"):
        for id in copied:
            _copy(evaluations[id], found[id][0], target)
        _copy_drift(graphs, sources, target)
    return Collected(
        store=target,
        copied=tuple(copied),
        present=tuple(id for id, stores in found.items() if target in stores),
        missing=tuple(id for id, stores in found.items() if not stores),
    )


def _evaluations(graph: Graph) -> Iterator[Stage]:
    for row in graph.rows:
        yield from row.measured
    for analysis in graph.analyses:
        yield analysis.stage


def _stores_with(stage: Stage, stores: Sequence[Path]) -> list[Path]:
    """Return the stores in which an evaluation is done and not stale."""
    return [
        store
        for store in dict.fromkeys(stores)
        if is_finished(stage.folder(store))
        and state_of(store, stage.kind, stage.id) is StageState.CACHED
    ]


def _check_equal(stage: Stage, stores: Sequence[Path]) -> None:
    """Raise UserError if stores have different results of one evaluation."""
    for store in stores:
        try:
            check_intact(store, stage.kind, stage.id)
        except StageFailedError as error:  # its hint is an option of `run`
            raise StageFailedError(
                f"{error.what}; nothing was copied",
                hint=f"Rebuild it: amnesia run --repair --store {store} ..., or leave out this "
                "store.",
            ) from error
    contents = [contents_of(store, {stage.id: stage.kind}) for store in stores]
    for store, content in zip(stores[1:], contents[1:], strict=True):
        if content != contents[0]:
            raise UserError(
                f"{stage.id}: {stores[0]} and {store} have different results of it; nothing was "
                "copied",
                hint="Rounding may differ between machines. Collect from only one of them.",
            )


def _copy(stage: Stage, source: Path, target: Path) -> None:
    final = stage.folder(target)
    make_folder(final.parent)
    with holding_lease(final):
        for leftover in leftover_paths(final):  # of a killed attempt
            shutil.rmtree(leftover, ignore_errors=True)
        work = new_working_path(final)
        try:
            shutil.copytree(stage.folder(source), work)
            if findings := verify_manifest(work):
                problem = f"{findings[0].path} {findings[0].problem}"
                raise StageFailedError(
                    f"{stage.id}: changed while it was copied: {problem}",
                    hint="Run the same command again when no run writes to that store.",
                )
            notes = adoption_notes(source, needed_stages(source, closure([stage])))
            mark_collected(target, stage, work, notes)
            work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _copy_drift(graphs: Sequence[Graph], sources: Sequence[Path], target: Path) -> None:
    """Copy the records of restored checkpoints, from which reports read the drift."""
    for stage in _restored(graphs):
        copy = stage_path(target, stage.id) / RESTORATION
        files = (drift_file(source, stage) for source in sources)
        file = next((file for file in files if file.is_file()), None)
        if file is not None and not drift_file(target, stage).is_file():
            make_folder(copy.parent)
            work = new_working_path(copy)
            shutil.copyfile(file, work)
            work.replace(copy)


def _restored(graphs: Sequence[Graph]) -> Iterator[Stage]:
    return (row.checkpoint for graph in graphs for row in graph.rows if row.method == "restored")
