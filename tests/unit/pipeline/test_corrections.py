"""What finished stages took, and the lengths of their answers, correct the plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.pipeline.attempts import ATTEMPTS, measured_gpu_hours, recording_attempt
from amnesia_bench.pipeline.graph import Graph, build
from amnesia_bench.pipeline.plan import Plan, PlannedStage, Step, plan_graphs
from amnesia_bench.pipeline.stage import Stage, whole_of
from amnesia_bench.store.checksums import write_checksums
from amnesia_bench.store.layout import MANIFEST, stage_path

H100 = "NVIDIA H100 80GB HBM3"
OVERRIDES = ["experiment=table1", "experiment.scopes.paper.models=[hypenet_2b,hypenet_5b]"]


@pytest.fixture(scope="module")
def graphs() -> list[Graph]:
    return [build(job) for job in load_jobs(OVERRIDES)]


def planned(store: Path, graphs: Sequence[Graph]) -> Plan:
    return plan_graphs(graphs, store, GPUS["h100"])


def named(plan: Plan, kind: str, name: str) -> PlannedStage:
    (found,) = (x for x in plan.stages if (x.stage.kind, x.stage.name) == (kind, name))
    return found


def finish(
    store: Path, planned: PlannedStage, ratio: float | None, gpu: str = H100, attempts: int = 1
) -> None:
    """Make up a finished stage that took `ratio` times the planned hours, or an unknown time."""
    folder = planned.stage.folder(store)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text("{}")
    gpus = planned.stage.gpus
    hours = None if ratio is None else ratio * planned.cost.gpu_hours / gpus / attempts
    record = {
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": None if hours is None else hours * 3600,
        "gpus": gpus,
        "gpu": gpu,
    }
    stage_path(store, planned.stage.id).mkdir(parents=True)
    (stage_path(store, planned.stage.id) / ATTEMPTS).write_text(json.dumps([record] * attempts))


def test_the_hours_of_a_step_are_multiplied_by_the_median_of_its_finished_stages(
    graphs: list[Graph], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = planned(tmp_path, graphs)
    recalls = [x for x in before.stages if x.step is Step.RECALL and x.stage.gpus]
    for stage, ratio in zip(recalls, (3.0, 2.0, 1.0), strict=False):
        finish(tmp_path, stage, ratio, attempts=2)
    finish(tmp_path, recalls[3], None)  # its worker was killed
    finish(tmp_path, recalls[4], 9.0, gpu="NVIDIA A100-SXM4-80GB")
    after = planned(tmp_path, graphs)
    assert set(after.corrections) == {Step.RECALL}
    assert after.corrections[Step.RECALL].factor == pytest.approx(2.0)
    assert after.corrections[Step.RECALL].stages == 3
    for old, new in zip(before.stages, after.stages, strict=True):
        factor = 2.0 if old.step is Step.RECALL else 1.0
        assert new.cost.gpu_hours == pytest.approx(factor * old.cost.gpu_hours)
        assert new.bound.gpu_hours == pytest.approx(factor * old.bound.gpu_hours)
    assert main(["plan", *OVERRIDES, "--store", str(tmp_path)]) == 0
    said = "The hours of recall are multiplied by 2.00, the median of the measured over the"
    assert f"{said} estimated hours of 3 finished stages." in capsys.readouterr().out


def score(store: Path, scores: Stage, mean_tokens: int) -> Stage:
    """Make up the finished scores of answers of this mean length; return the answers."""
    scored = scores.folder(store) / "scored_strict"
    scored.mkdir(parents=True)
    (scored.parent / MANIFEST).write_text("{}")
    cell = {
        **dict.fromkeys(("model", "method", "task"), "x"),
        **{"context_tokens": None, "metric": "mean_new_tokens", "value": mean_tokens, "n": 1319},
        **dict.fromkeys(("stderr", "interval", "incomplete")),
        **{"repeats": 16, "settings": {}, "parents": []},
    }
    (scored / "cells.json").write_text(json.dumps([cell]))
    write_checksums(scored, ["cells.json"])
    return scores.inputs[0]


def test_the_lengths_of_merged_answers_are_those_of_their_parts(tmp_path: Path) -> None:
    """Otherwise the speed of the parts would be compared with the lengths of other models."""
    overrides = [*OVERRIDES, "profile.max_hours_per_evaluation=0.5"]
    graphs = [build(job) for job in load_jobs(overrides)]
    before = planned(tmp_path, graphs)
    for model, tokens in (("2b", 300), ("5b", 900)):
        scores = named(before, "scores", f"sft_miromind_{model}-s0.math500").stage
        whole = score(tmp_path, scores, mean_tokens=tokens)
        assert any(whole_of(read.id) == whole.id for read in whole.inputs)
    after = planned(tmp_path, graphs)
    assert after.measured_lengths == 2
    for model, tokens in (("2b", 300), ("5b", 900)):
        name = f"answers.sft_miromind_{model}-s0.math500.part"
        parts = [x for x in after.stages if x.stage.id.startswith(name)]
        assert sum(part.cost.new_tokens for part in parts) == tokens * 500 * 16


def test_scored_answers_give_the_lengths_of_others_and_no_speed(
    graphs: list[Graph], tmp_path: Path
) -> None:
    before = planned(tmp_path, graphs)
    name = "sft_miromind_2b-s0.gsm8k"
    answers = score(tmp_path, named(before, "scores", name).stage, mean_tokens=489)
    lengths = planned(tmp_path, graphs)
    # It took exactly what answers of 489 tokens take, so the assumed speed is right.
    finish(tmp_path, named(lengths, "answers", answers.name), 1.0)
    after = planned(tmp_path, graphs)
    assert after.measured_lengths == 1
    assert after.corrections[Step.REASONING].factor == pytest.approx(1.0)
    answered = 1319 * 16
    for other in (f"{name.removesuffix('.gsm8k')}-qk.gsm8k", "sft_miromind_5b-s0.gsm8k"):
        assert named(after, "answers", other).cost.new_tokens == 489 * answered
        assert named(after, "answers", other).bound.new_tokens == 2048 * answered
    base = "stage3_2b-s0.gsm8k"  # was not trained on chains of thought
    assert named(after, "answers", base).cost == named(before, "answers", base).cost


def test_every_attempt_is_recorded_and_a_killed_one_makes_the_time_unknown(tmp_path: Path) -> None:
    folder = stage_path(tmp_path, "stage-1")
    folder.mkdir(parents=True)
    assert measured_gpu_hours(tmp_path, "stage-1", "h100") is None
    with pytest.raises(SystemExit), recording_attempt(folder, 8, H100):
        raise SystemExit(75)
    with recording_attempt(folder, 8, H100):
        assert measured_gpu_hours(tmp_path, "stage-1", "h100") is None
    records = json.loads((folder / ATTEMPTS).read_text())
    assert [record["gpus"] for record in records] == [8, 8]
    seconds = sum(record["seconds"] for record in records)
    hours = measured_gpu_hours(tmp_path, "stage-1", "h100")  # None if both took no time at all
    assert hours == (pytest.approx(seconds * 8 / 3600) if seconds else None)
    assert measured_gpu_hours(tmp_path, "stage-1", "a100") is None
    (folder / ATTEMPTS).write_text("[")
    assert measured_gpu_hours(tmp_path, "stage-1", "h100") is None
