"""`amnesia collect`: evaluations of several stores in one, which then needs no checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.pipeline.bookkeeping import StageState
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import ExperimentRow
from amnesia_bench.pipeline.reporting import drift_file, report_calls
from amnesia_bench.pipeline.run import StageCounts, run_graph
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.store.hashing import verify_manifest
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing

SEEDS = (100, 101)
BOTH = ("experiment=table1", "profile=gemma_smoke", "profile.seeds=[100,101]")


def rows(*overrides: str) -> list[ExperimentRow]:
    return [row for graph in graphs_of(overrides or BOTH) for row in graph.rows]


def evaluations(seed: int) -> list[Stage]:
    return [stage for row in rows() if row.seed == seed for stage in row.measured]


def finish(store: Path, stage: Stage, text: str = "[]") -> None:
    with publishing(stage.folder(store)) as work:
        (work.folder / "cells.json").write_text(text)
        work.finish(stage.kind, (), collect_provenance(["test"], seeds={}))


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    """One store per seed, each with a repaired checkpoint."""
    folders = []
    for seed in SEEDS:
        store = tmp_path / f"seed{seed}"
        for stage in evaluations(seed):
            finish(store, stage)
        (restored,) = (r.checkpoint for r in rows() if (r.seed, r.method) == (seed, "restored"))
        restored.folder(store).mkdir(parents=True)
        (restored.folder(store) / "restoration.json").write_text(json.dumps({"seed": seed}))
        folders.append(store)
    return folders


def collect(target: Path, *sources: Path, overrides: tuple[str, ...] = BOTH) -> object:
    return ab.collect(ab.CollectRequest(overrides=overrides, sources=sources, store=target))


def test_what_was_collected_is_done_and_needs_no_checkpoint(
    stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "all"
    command = ["collect", *BOTH, "--store", str(target)]
    assert main([*command, "--from", str(stores[0])]) == 0
    first = evaluations(SEEDS[0])
    text = capsys.readouterr()
    assert f"{len(first)} evaluations copied, 0 were there" in text.out
    assert f"{len(evaluations(SEEDS[1]))} evaluations are in none of the stores" in text.err
    assert main([*command, *(f"--from={store}" for store in stores)]) == 0
    text = capsys.readouterr()
    assert f"{len(first)} were there" in text.out
    assert not text.err
    graphs = graphs_of(BOTH)
    stages = [stage for graph in graphs for row in graph.rows for stage in row.measured]
    assert run_graph(target, stages) == StageCounts(cached=len({s.id for s in stages}), done=0)
    plan = ab.plan(ab.PlanRequest(overrides=BOTH, store=target))
    assert {planned.state for planned in plan.stages} == {StageState.CACHED}
    assert {planned.stage.kind for planned in plan.stages} == {"recall", "scores"}
    for stage in stages:
        assert verify_manifest(stage.folder(target)) == []
    restored = [row.checkpoint for row in rows() if row.method == "restored"]
    drifts = [json.loads(drift_file(target, stage).read_text()) for stage in restored]
    assert drifts == [{"seed": seed} for seed in SEEDS]
    # Another evaluation of a seed needs its checkpoints, and all that they are made of.
    more = ab.plan(ab.PlanRequest(overrides=("experiment=ladder", *BOTH[1:]), store=target))
    assert {"trained", "data"} <= {planned.stage.kind for planned in more.pending}


def test_analyses_are_collected_and_an_adopted_checkpoint_stays_known(tmp_path: Path) -> None:
    figures = ("experiment=figures", "profile=gemma_smoke", "profile.seeds=[100]")
    (graph,) = graphs_of(figures)
    source, first, second = tmp_path / "source", tmp_path / "first", tmp_path / "second"
    stages = [stage for row in graph.rows for stage in row.measured]
    stages += [analysis.stage for analysis in graph.analyses]
    for stage in {stage.id: stage for stage in stages}.values():
        finish(source, stage)
    adopted = next(row.checkpoint for row in graph.rows if row.method == "post")
    mine = Parent(role="checkpoint", location="/mine", identity="sha256:1")
    with publishing(adopted.folder(source)) as work:
        work.finish("adopted", [mine], collect_provenance(["test"], seeds={}))
    collect(first, source, overrides=figures)
    collect(second, first, overrides=figures)
    plan = ab.plan(ab.PlanRequest(overrides=figures, store=second))
    assert {planned.stage.id for planned in plan.stages} == {stage.id for stage in stages}
    assert {planned.state for planned in plan.stages} == {StageState.CACHED}
    (call,) = report_calls([graph], second, tmp_path / "results")
    assert call.request.notes == (f"{adopted.id} was adopted, not computed: /mine (sha256:1)",)


def test_stores_that_differ_are_named_and_nothing_is_copied(
    stores: list[Path], tmp_path: Path
) -> None:
    stage = evaluations(SEEDS[0])[0]
    finish(stores[1], stage, "[1]")
    with pytest.raises(UserError, match="have different results of it; nothing was copied"):
        collect(tmp_path / "all", *stores)
    assert not (tmp_path / "all").exists()


def test_a_damaged_evaluation_is_not_copied(stores: list[Path], tmp_path: Path) -> None:
    (evaluations(SEEDS[0])[0].folder(stores[0]) / "cells.json").write_text("[0]")
    with pytest.raises(
        StageFailedError, match=r"was damaged or edited.*nothing was copied"
    ) as caught:
        collect(tmp_path / "all", stores[0])
    assert f"amnesia run --repair --store {stores[0]}" in (caught.value.hint or "")


def test_a_collected_evaluation_that_was_edited_is_never_removed(
    stores: list[Path], tmp_path: Path
) -> None:
    target = tmp_path / "all"
    collect(target, *stores)
    stage = evaluations(SEEDS[0])[0]
    (stage.folder(target) / "cells.json").write_text("[0]")
    with pytest.raises(StageFailedError, match="was collected, and has been damaged") as caught:
        run_graph(target, [stage])
    assert "amnesia collect" in str(caught.value.hint)
    shutil.rmtree(stage.folder(target))
    plan = ab.plan(ab.PlanRequest(overrides=BOTH, store=target))
    assert stage.id in {planned.stage.id for planned in plan.pending}
    collect(target, *stores)
    assert verify_manifest(stage.folder(target)) == []


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such store"):
        collect(tmp_path / "all", tmp_path / "nowhere")
