"""`restore --layers topN@FILE`: the most important layers of a ranking, or a clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.codec import to_json
from amnesia_bench.records.layer_ranking import LayerImportance, LayerRanking
from tests.support.checkpoints import drifted, random_model, save


def write_ranking(path: Path, layers: list[int]) -> Path:
    ranking = LayerRanking(
        checkpoint=Parent(role="checkpoint", location="pre", identity="sha256:0"),
        ablation="zero",
        tasks=(),
        accuracy={},
        layers=tuple(
            LayerImportance(layer=layer, importance=1 / (i + 1), accuracy={})
            for i, layer in enumerate(layers)
        ),
        settings={},
    )
    path.write_text(json.dumps(to_json(ranking)))
    return path


@pytest.fixture
def restore(tmp_path: Path) -> list[str]:
    model = random_model(0)
    pre = save(tmp_path / "pre", model)
    post = save(tmp_path / "post", drifted(model, 1))
    return ["restore", "--pre", str(pre), "--post", str(post), "--json"]


def test_the_first_layers_of_a_ranking_are_restored(
    restore: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_ranking(tmp_path / "a ranking@home.json", [4, 1, 3])
    out = tmp_path / "out"
    assert main([*restore, "--out", str(out), "--layers", f"top2@{file}"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["restored_layers"] == [1, 4]
    assert record["variant"]["select"]["layers"] == [1, 4]


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ("top4@{ranking}", "top4: the ranking has 3 layers"),
        ("top0@{ranking}", "expected all, a list such as 2,3,6, top7 or top7@FILE"),
        ("top1@{missing}", "missing.json: no such file"),
        ("top1@{post}/config.json", "config.json: unknown key"),
        ("top1@", "expected all, a list such as 2,3,6, top7 or top7@FILE"),
        ("top3@{other}", "select.layers: 0 is not a softmax layer"),
    ],
)
def test_a_wrong_ranking_is_refused_before_anything_is_written(
    layers: str,
    problem: str,
    restore: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = layers.format(
        ranking=write_ranking(tmp_path / "ranking.json", [4, 1, 3]),
        other=write_ranking(tmp_path / "other.json", [0, 1, 2]),
        missing=tmp_path / "missing.json",
        post=tmp_path / "post",
    )
    assert main([*restore, "--out", str(tmp_path / "out"), "--layers", given]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
