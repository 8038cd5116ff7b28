"""The bookkeeping of a ranking: order, resuming, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.lm_eval_bridge.layer_ranking import measure_layers
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.layer_ranking import LayerRanking, RankingTask
from amnesia_bench.surgery.ranked_layers import read_ranking


def ranking_task(name: str) -> RankingTask:
    return RankingTask(name=name, version="1", metric="m", n=10, source="file", sha256="0")


PLAN = LayerRanking(
    checkpoint=Parent(role="checkpoint", location="m", identity="sha256:1"),
    ablation="zero",
    tasks=(ranking_task("fda"), ranking_task("swde")),
    accuracy={},
    layers=(),
    settings={"engine": "none"},
)
LAYERS = (0, 1, 2, 5)
# Without layer 2 most is lost, without 5 something is won; 0 and 1 lose the same.
ACCURACY: Mapping[int | None, tuple[float, float]] = {
    None: (0.8, 0.6),
    0: (0.7, 0.6),
    1: (0.8, 0.5),
    2: (0.1, 0.2),
    5: (0.9, 0.6),
}


class Measured:
    """Measures from a table, and dies before a layer."""

    def __init__(self, dies_before: int | None = -1) -> None:
        self.dies_before = dies_before
        self.asked: list[int | None] = []

    def __call__(self, layer: int | None) -> dict[str, float]:
        if layer == self.dies_before:
            raise KeyboardInterrupt
        self.asked.append(layer)
        fda, swde = ACCURACY[layer]
        return {"fda": fda, "swde": swde, "other": 0.0}


def test_layers_are_ranked_by_the_mean_accuracy_that_they_carry(tmp_path: Path) -> None:
    ranking = measure_layers(PLAN, LAYERS, Measured(), tmp_path / "ranking.json")
    assert [(entry.layer, entry.importance) for entry in ranking.layers] == [
        (2, 0.55),
        (0, 0.05),
        (1, 0.05),
        (5, -0.05),
    ]
    assert ranking.accuracy == {"fda": 0.8, "swde": 0.6, "other": 0.0}
    assert ranking.top(3) == (0, 1, 2)
    assert read_ranking(tmp_path / "ranking.json") == ranking
    assert [path.name for path in tmp_path.iterdir()] == ["ranking.json"]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_killed_ranking_goes_on_with_the_layer_it_died_in(layer: int, tmp_path: Path) -> None:
    first, second = Measured(dies_before=layer), Measured()
    with pytest.raises(KeyboardInterrupt):
        measure_layers(PLAN, LAYERS, first, tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()
    measure_layers(PLAN, LAYERS, second, tmp_path / "a.json")
    assert second.asked[0] == layer
    assert [*first.asked, *second.asked] == [None, *LAYERS]
    measure_layers(PLAN, LAYERS, Measured(), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_what_was_measured_for_another_ranking_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure_layers(PLAN, LAYERS, Measured(dies_before=2), tmp_path / "a.json")
    other = replace(PLAN, checkpoint=replace(PLAN.checkpoint, identity="sha256:2"))
    measure = Measured()
    with pytest.raises(UserError, match="holds measurements of another ranking"):
        measure_layers(other, LAYERS, measure, tmp_path / "a.json")
    assert measure.asked == []


def test_a_finished_ranking_is_returned_and_never_overwritten(tmp_path: Path) -> None:
    first = measure_layers(PLAN, LAYERS, Measured(), tmp_path / "a.json")
    written = (tmp_path / "a.json").read_bytes()
    # As if it had been killed between the two.
    (tmp_path / ".a.json.measured").mkdir()
    measure = Measured()
    assert measure_layers(PLAN, LAYERS, measure, tmp_path / "a.json") == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(UserError, match="already exists, with another"):
        measure_layers(replace(PLAN, ablation="another"), LAYERS, measure, tmp_path / "a.json")
    assert measure.asked == []
    assert (tmp_path / "a.json").read_bytes() == written


def test_what_is_not_ours_beside_a_ranking_stays(tmp_path: Path) -> None:
    own = tmp_path / ".a.json.measured/notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    for _ in range(2):
        measure_layers(PLAN, LAYERS, Measured(), tmp_path / "a.json")
        assert [path.name for path in own.parent.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("count", [0, 5])
def test_more_layers_than_there_are_is_an_error(count: int, tmp_path: Path) -> None:
    ranking = measure_layers(PLAN, LAYERS, Measured(), tmp_path / "a.json")
    with pytest.raises(ValueError, match=f"top{count}: the ranking has 4 layers"):
        ranking.top(count)
