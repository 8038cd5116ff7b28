"""`amnesia rank-layers` on a tiny model and small data, and its ranking given to `restore`."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from amnesia_bench.cli.main import main
from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.lm_eval_bridge.model import AmnesiaLM
from amnesia_bench.lm_eval_bridge.retrieval_tasks import files_in, load_retrieval_tasks
from amnesia_bench.lm_eval_bridge.zero_shot import accuracies
from tests.support.byte_checkpoints import LAYERS, byte_tokenizer, save_checkpoint
from tests.support.fake_engine import FakeEngine

SQUAD: Mapping[str, Any] = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"The {thing} of town {i} is painted red.",
                    "qas": [
                        {
                            "question": f"What colour is the {thing} of town {i}?",
                            "is_impossible": False,
                            "answers": [{"text": "red"}, {"text": "painted red"}],
                        },
                        {"question": "Why?", "is_impossible": True, "answers": []},
                    ],
                }
                for i in range(2)
            ]
        }
        for thing in ("gate", "mill")
    ]
}


def rows(name: str, values: list[str]) -> str:
    return "".join(
        json.dumps({"text": f" {name} {i}: the key is ", "value": value}) + "\n"
        for i, value in enumerate(values)
    )


def write_data(folder: Path, fda: list[str], swde: list[str]) -> Path:
    folder.mkdir()
    (folder / "fda.jsonl").write_text(rows("fda", fda))
    (folder / "swde.jsonl").write_text(rows("swde", swde))
    (folder / "dev-v2.0.json").write_text(json.dumps(SQUAD))
    return folder


class Listening(AmnesiaLM):
    """Keeps the answers."""

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        self.answers = super().generate_until(requests, disable_tqdm)
        return self.answers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def data(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make data whose values are what the whole model answers: it scores 1.0."""
    folder = tmp_path_factory.mktemp("data")
    unknown = write_data(folder / "unknown", ["?"] * 3, ["?"] * 3)
    lm = Listening(TransformersEngine.load(checkpoint, EngineOptions()), byte_tokenizer())
    values = []
    for name in ("fda", "swde"):
        accuracies(lm, load_retrieval_tasks((name,), byte_tokenizer(), files_in(unknown)), None)
        values.append(lm.answers)
    return write_data(folder / "known", *values)


def rank(checkpoint: Path, data: Path, out: Path, *more: str) -> int:
    arguments = ["--checkpoint", str(checkpoint), "--data", str(data), "--out", str(out)]
    return main(["rank-layers", *arguments, *more])


def test_a_ranking_is_measured_and_its_first_layers_are_restored(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ranking.json"
    assert rank(checkpoint, data, out) == 0
    assert "attention output zero (our reading of Appendix M)" in capsys.readouterr().out
    ranking = json.loads(out.read_text())
    assert [(task["name"], task["version"], task["n"]) for task in ranking["tasks"]] == [
        ("fda", "1", 3),
        ("swde", "1", 3),
        ("ruler_qa_squad", "1.0", 4),
    ]
    assert ranking["accuracy"]["fda"] == ranking["accuracy"]["swde"] == 1.0
    assert {entry["layer"] for entry in ranking["layers"]} == set(range(LAYERS))
    assert ranking["layers"][0]["importance"] > 0
    tasks = ("fda", "swde", "ruler_qa_squad")
    for entry in ranking["layers"]:
        lost = sum(ranking["accuracy"][task] - entry["accuracy"][task] for task in tasks) / 3
        assert entry["importance"] == pytest.approx(lost)

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "post")
    given = ["--pre", str(checkpoint), "--post", str(tmp_path / "post"), "--dry-run", "--json"]
    assert main(["restore", *given, "--layers", f"top2@{out}"]) == 0
    restored = json.loads(capsys.readouterr().out)["restored_layers"]
    assert restored == sorted(entry["layer"] for entry in ranking["layers"][:2])


def test_some_tasks_and_samples_only(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranking.json"
    assert rank(checkpoint, data, out, "--tasks", "swde", "--samples", "2") == 0
    (task,) = json.loads(out.read_text())["tasks"]
    assert (task["name"], task["n"], task["source"]) == ("swde", 2, "file:swde.jsonl")


def test_squad_is_scored_by_lm_evals_mean_and_by_rulers_best(data: Path) -> None:
    lm = AmnesiaLM(FakeEngine(lambda _: " Red."), byte_tokenizer())
    tasks = load_retrieval_tasks(("ruler_qa_squad",), byte_tokenizer(), files_in(data))
    found = accuracies(lm, tasks, None)
    assert found == {"ruler_qa_squad": 0.5, "ruler_qa_squad_max": 1.0}


def test_documents_are_the_same_whatever_was_drawn_before(data: Path) -> None:
    before = random.getstate()
    (first,) = load_retrieval_tasks(("ruler_qa_squad",), byte_tokenizer(), files_in(data))
    assert random.getstate() == before
    random.seed(7)
    (second,) = load_retrieval_tasks(("ruler_qa_squad",), byte_tokenizer(), files_in(data))
    assert first.sha256 == second.sha256


def test_rows_of_the_hub_are_recorded_with_their_commit(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    asked = []

    def load(*names: str, **options: str) -> list[dict[str, str]]:
        asked.append((*names, options["split"], options["revision"]))
        return [json.loads(line) for line in (data / "fda.jsonl").read_text().splitlines()]

    hub = SimpleNamespace(dataset_info=lambda _: SimpleNamespace(sha="abc"))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(datasets, "load_dataset", load)
    (task,) = load_retrieval_tasks(("fda",), byte_tokenizer(), {})
    assert asked == [("hazyresearch/based-fda", "default", "validation", "abc")]
    assert task.source == "hub:hazyresearch/based-fda@abc"
    (local,) = load_retrieval_tasks(("fda",), byte_tokenizer(), files_in(data))
    assert task.sha256 == local.sha256


@pytest.mark.parametrize("task", ["fda", "ruler_qa_squad"])
def test_without_network_the_way_out_is_named(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def refuse(*_: Any, **__: Any) -> None:
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests.Session, "request", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(MissingEnvironmentError, match="cannot be downloaded") as caught:
        load_retrieval_tasks((task,), byte_tokenizer(), {})
    assert "--data" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("fda.jsonl", None, "fda.jsonl: no such file"),
        ("fda.jsonl", "", "fda.jsonl: holds no rows"),
        ("fda.jsonl", '{"text": "a"}\n', "fda.jsonl:1: not an object with text and value"),
        ("swde.jsonl", '{"text": "a", "value": "b"}\n{\n', "swde.jsonl:2: not JSON"),
        ("dev-v2.0.json", None, "dev-v2.0.json: no such file"),
        ("dev-v2.0.json", '{"data": [{}]}', "not in the format of SQuAD's"),
        ("dev-v2.0.json", '{"data": []}', "contains no question with an answer"),
    ],
)
def test_bad_data_is_named_before_anything_is_measured(
    file: str,
    content: str | None,
    problem: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_data(tmp_path / "data", ["a"], ["b"])
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    assert rank(checkpoint, folder, tmp_path / "out" / "ranking.json") == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_commands_are_refused(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ranking.json"
    assert rank(checkpoint, data, out, "--tasks", "fda,squad") == 2
    assert "no task 'squad'" in capsys.readouterr().err
    assert rank(checkpoint, data, out, "--samples", "0") == 2
    assert rank(tmp_path / "no_model", data, out) == 2
    assert not out.exists()
    out.write_text("mine")
    assert rank(checkpoint, data, out) == 2
    assert out.read_text() == "mine"
