"""select_layers: HALO's published scores give its layers, from tables and from result files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.config.load import load_model
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.requests.checkpoints import SelectLayersRequest

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "halo_layer_scores.json").read_text()
)
RETRIEVAL = ("fda", "swde", "ruler_qa_squad")


def write_logs(folder: Path, scores: Scores) -> None:
    """Write two logs for each model, with the tables that lm-eval prints."""
    for name, tasks in scores.items():
        place = folder / ("" if name == "original" else "sweep") / name
        place.mkdir(parents=True)
        for file, chosen in (
            ("retrieval", [task for task in tasks if task in RETRIEVAL]),
            ("commonsense", [task for task in tasks if task not in RETRIEVAL]),
        ):
            lines = [
                "2025-12-04 INFO running",
                "|Tasks|Version|Filter|n-shot|Metric|   |Value|   |",
            ]
            lines.append("|-----|------:|------|-----:|------|---|----:|---|")
            for task in chosen:
                shown = task
                for metric, value in tasks[task].items():
                    lines.append(f"|{shown}|     1|none  |     0|{metric}|↑  |{value}|±  |")
                    shown = ""
            (place / f"{file}.log").write_text("\n".join([*lines, "", "| no table |"]))


def write_results(folder: Path, scores: Scores) -> None:
    """Write one result file for each model, as lm-eval saves it."""
    for name, tasks in scores.items():
        place = folder / name / "model"
        place.mkdir(parents=True)
        results = {
            task: {
                "alias": task,
                **{f"{metric},none": value for metric, value in values.items()},
                **{f"{metric}_stderr,none": "N/A" for metric in values},
                "8192,none": -1,
            }
            for task, values in tasks.items()
        }
        (place / "results_2025-12-04T00-00-00.json").write_text(json.dumps({"results": results}))


@pytest.mark.parametrize("write", [write_logs, write_results])
@pytest.mark.parametrize(
    ("shape", "missing", "surplus"),
    [("hypenet_2b", set(), set()), ("hypenet_5b", {31}, {34}), ("hypenet_9b", set(), set())],
)
def test_published_scores_give_the_published_layers(
    write: Any, shape: str, missing: set[int], surplus: set[int], tmp_path: Path
) -> None:
    write(tmp_path / "scores", GOLDEN[shape])
    mixers = load_model(shape).values["mixer_types"]
    assert isinstance(mixers, list)
    published = {layer for layer, mixer in enumerate(mixers) if mixer == "attn"}
    request = SelectLayersRequest(scores=tmp_path / "scores", count=len(published))
    selection = ab.select_layers(request, tmp_path / "selection.json")
    # One of the 27 published layers is not among the highest scores of the published logs.
    assert published - set(selection.selected) == missing
    assert set(selection.selected) - published == surplus


def test_a_run_may_have_its_table_next_to_its_results_and_other_tasks(tmp_path: Path) -> None:
    scores = {
        name: {task: {m: v + 0.000012 for m, v in values.items()} for task, values in tasks.items()}
        for name, tasks in GOLDEN["hypenet_2b"].items()
    }
    request = SelectLayersRequest(scores=tmp_path / "scores", count=7)
    write_results(request.scores, scores)
    expected = ab.select_layers(request, tmp_path / "of_results.json")
    rows = [
        "|Tasks |Version|     Filter     |n-shot|  Metric   |   |Value |   |Stderr|",
        "|------|------:|----------------|-----:|-----------|---|-----:|---|------|",
        "|gsm8k |      3|flexible-extract|     5|exact_match|↑  |0.4000|±  |0.0100|",
        "|      |       |strict-match    |     5|exact_match|↑  |0.3000|±  |0.0100|",
        "|glue  |      1|none            |     0|acc        |↑  |   N/A|   |      |",
    ]
    for name, tasks in scores.items():
        table = [
            f"|{task}|1|none|0|{metric}|↑|{value:.4f}|±|0.01|"
            for task, values in tasks.items()
            for metric, value in values.items()
        ]
        (request.scores / name / "output.txt").write_text("\n".join([*rows, *table]))
    assert ab.select_layers(request, tmp_path / "of_both.json").layers == expected.layers


def test_the_rule_of_jet_nemotron_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = GOLDEN["hypenet_2b"]
    write_logs(tmp_path / "scores", scores)
    command = ["select-layers", str(tmp_path / "scores"), "--count", "3", "--rule", "jet_nemotron"]
    assert main([*command, "--out", str(tmp_path / "out.json")]) == ExitCode.DONE

    def retrieval(name: str) -> float:
        return sum(sum(scores[name][task].values()) for task in RETRIEVAL) / 3

    lost = {layer: retrieval("original") - retrieval(f"layer{layer}") for layer in range(28)}
    best = sorted(sorted(lost, key=lambda layer: -lost[layer])[:3])
    assert f"Softmax layers: {' '.join(map(str, best))}\n" in capsys.readouterr().out


def test_halo_by_hand(tmp_path: Path) -> None:
    def tasks(retrieval: float, commonsense: float) -> dict[str, dict[str, float]]:
        found = {task: {"contains": retrieval} for task in RETRIEVAL}
        return found | {
            task: {"acc": 0.1, "acc_norm": commonsense}
            for task in ("arc_challenge", "arc_easy", "hellaswag")
        }

    layers = [(0.9, 0.7), (0.5, 0.7), (0.5, 0.6), (0.7, 0.5)]
    write_results(tmp_path / "s", {f"layer{n}": tasks(*pair) for n, pair in enumerate(layers)})
    selection = ab.select_layers(
        SelectLayersRequest(scores=tmp_path / "s", count=2), tmp_path / "out"
    )
    assert [(entry.layer, entry.score) for entry in selection.layers] == [
        (1, 50.0),
        (2, pytest.approx(0.4 / 0.1)),
        (3, pytest.approx(0.2 / 0.2)),
        (0, pytest.approx(0.0)),
    ]
    assert selection.selected == (1, 2)
    assert selection.original_retrieval is None


def _of(scores: Scores, count: int) -> Scores:
    return {name: scores[name] for name in ("original", *(f"layer{n}" for n in range(count)))}


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (lambda s: (s / "sweep" / "layer1").rename(s / "other"), {}, "has layer2 but not layer1"),
        (lambda s: (s / "original").rename(s / "x"), {"rule": "jet_nemotron"}, "no folder origin"),
        (lambda _: None, {"count": 4}, "4 layers are requested, and 3 have scores"),
        (lambda _: None, {"retrieval": ("niah",)}, "has no score of niah; it has arc_challenge"),
        (lambda s: write_logs(s / "b", _of(GOLDEN["hypenet_5b"], 1)), {}, "two folders for layer"),
        (
            lambda s: (s / "sweep" / "original").mkdir(),
            {},
            "two folders of the original model: ",
        ),
        (
            lambda s: (s / "sweep" / "layer0" / "more.log").write_text(
                "|Tasks|Metric|Value|\n|fda|contains|0.1|\n"
            ),
            {},
            "fda, contains is 0.1 in one file and 0.6869 in retrieval.log",
        ),
        (
            lambda s: (s / "sweep" / "layer0" / "results.json").write_text("{}"),
            {},
            "results.json: is not a result file of lm-eval",
        ),
    ],
)
def test_what_is_missing_or_ambiguous_is_named(
    spoil: Any, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    scores = tmp_path / "scores"
    write_logs(scores, _of(GOLDEN["hypenet_2b"], 3))
    spoil(scores)
    request = SelectLayersRequest(**{"scores": scores, "count": 2} | options)
    with pytest.raises(UserError, match=said):
        ab.select_layers(request, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_folder_without_scores_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no folders layer0, layer1"):
        ab.select_layers(SelectLayersRequest(scores=tmp_path, count=1), tmp_path / "out.json")
    (tmp_path / "layer0").mkdir()
    with pytest.raises(UserError, match="layer0: contains no scores of lm-eval"):
        ab.select_layers(SelectLayersRequest(scores=tmp_path, count=1), tmp_path / "out.json")
