"""Rankings of layers and of heads as screens: a value per layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.head_ranking import HeadRanking, HeadScore
from amnesia_bench.statistics.intervals import wilson
from amnesia_bench.tuning.screens import ranking_screen

PARENT = Parent(role="checkpoint", location="here", identity="sha256:0")


def heads_file(folder: Path, scores: dict[tuple[int, int], float]) -> Path:
    ranking = HeadRanking(
        checkpoint=PARENT,
        post=None,
        prompts=PARENT,
        n=9,
        tokens=(10, 20),
        recalled=3,
        heads=tuple(
            HeadScore(layer=layer, head=head, kv_head=0, score=score, interval=wilson(9 * score, 9),
                      drift_q=None, drift_k=None)
            for (layer, head), score in scores.items()
        ),
        overlaps=(),
        settings={},
    )  # fmt: skip
    file = folder / "heads.json"
    file.write_text(json.dumps(codec.to_json(ranking)))
    return file


def test_a_ranking_of_heads_gives_each_layer_the_scores_of_its_heads(tmp_path: Path) -> None:
    file = heads_file(tmp_path, {(3, 1): 0.5, (1, 0): 0.25, (3, 0): 0.25, (1, 1): 0.0})
    screen = ranking_screen(file, (1, 3))
    assert screen.by_layer == {"1": 0.25, "3": 0.75}
    with pytest.raises(UserError, match="does not rank layer 2") as caught:
        ranking_screen(file, (1, 2, 3))
    assert "amnesia rank-heads" in str(caught.value.hint)


@pytest.mark.parametrize("text", ['{"heads": []}', "[]", '{"layers": 3}'])
def test_what_is_no_ranking_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match=r"other\.json"):
        ranking_screen(tmp_path / "other.json", (1,))
