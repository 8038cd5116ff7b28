"""RULER's tasks as a user meets them: built, evaluated with lm-eval's scores, checked, refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench import CompareRequest, ExportRequest, compare, export
from amnesia_bench.cli.main import main
from amnesia_bench.errors import ExitCode
from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.recall.niah import build_prompts, open_prompt_sets
from amnesia_bench.requests.experiments import LabelledCells
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.byte_checkpoints import save_checkpoint, write_haystack
from tests.support.fake_engine import FakeEngine
from tests.support.ruler_questions import write_hotpot, write_squad

LENGTH, SAMPLES = 8192, 50
TASKS = ("niah_multivalue", "niah_multikey_3", "ruler_cwe", "ruler_fwe", "ruler_qa_squad")


@dataclass(frozen=True)
class Inputs:
    folder: Path
    checkpoint: Path
    post: Path
    prompts: Path
    values: dict[tuple[str, int], tuple[str, ...]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    checkpoint = save_checkpoint(folder / "checkpoint")
    write_haystack(folder / "essays.json")
    build = BuildPromptsRequest(
        tokenizer=checkpoint,
        lengths=(LENGTH,),
        tasks=TASKS,
        haystack=folder / "essays.json",
        samples=SAMPLES,
        squad=write_squad(folder / "squad.json", articles=40),
    )
    build_prompts(build, folder / "prompts")
    values = {
        (prompt_set.name, i): prompt_set.values(i)
        for prompt_set in open_prompt_sets(folder / "prompts", load_tokenizer(checkpoint))
        for i in range(len(prompt_set))
    }
    post = save_checkpoint(folder / "post", seed=1)
    return Inputs(folder, checkpoint, post, folder / "prompts", values)


def engine(inputs: Inputs, missing: int) -> FakeEngine:
    """Return a model that leaves out the last values of every second answer."""

    def answer(request: PromptRequest) -> str:
        values = inputs.values[request.key.task, request.key.doc]
        kept = len(values) - missing * (request.key.doc % 2)
        return " and\x00 ".join(values[: max(0, kept)]).upper()

    return FakeEngine(answer)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_answer_scores_as_in_lm_eval(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all

    from amnesia_bench.lm_eval_bridge import evaluation

    monkeypatch.setattr(evaluation, "open_engine", lambda *_, **__: engine(inputs, missing=1))
    arguments = ["--checkpoint", inputs.checkpoint, "--prompts", inputs.prompts, "--out", tmp_path]
    assert main(["eval", "niah", *map(str, arguments)]) == ExitCode.DONE
    for task in TASKS:
        folder = tmp_path / f"{task}@{LENGTH}"
        cell = json.loads((folder / "cell.json").read_text())
        scores = []
        for sample in lines(folder / "samples.jsonl"):
            value = sample["value"]
            values = [value] if isinstance(value, str) else value
            assert tuple(values) == inputs.values[f"{task}@{LENGTH}", sample["key"]["doc"]]
            scores.append(string_match_all(postprocess_pred([sample["text"]]), [values]))
            assert (sample["outcome"] == "correct") == (scores[-1] == 1)
        assert cell["value"] == sum(scores) / len(scores)
        assert cell["n"] == SAMPLES
        assert cell["interval"]["low"] < cell["value"] < cell["interval"]["high"]
        if task != "niah_multikey_3":
            assert len(set(scores)) > 1
    limit = json.loads((tmp_path / f"ruler_fwe@{LENGTH}" / "cell.json").read_text())
    assert limit["settings"]["max_new_tokens"] == "50"


def test_fractional_scores_are_compared_and_exported_as_fractions(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amnesia_bench.lm_eval_bridge import evaluation

    for missing, name in ((0, "all"), (1, "some")):
        fake = engine(inputs, missing)
        monkeypatch.setattr(evaluation, "open_engine", lambda *_, engine=fake, **__: engine)
        command = ["--checkpoint", inputs.checkpoint, "--prompts", inputs.prompts]
        command += ["--tasks", "niah_multivalue", "--out", tmp_path / name]
        assert main(["eval", "niah", *map(str, command)]) == ExitCode.DONE
    (row,) = compare(CompareRequest(a=tmp_path / "all", b=tmp_path / "some")).rows
    # Every second answer lacks one of four values.
    assert (row.a, row.b, row.tied) == (1, 0.875, SAMPLES // 2)
    assert row.method == "sign_flip_exact"
    assert row.p_value == pytest.approx(2 * 0.5 ** (SAMPLES // 2))
    request = ExportRequest(
        format="every-eval-ever", sources=(LabelledCells(folder=tmp_path / "some"),)
    )
    export(request, tmp_path / "exported")
    (samples,) = (tmp_path / "exported").rglob("*_samples.jsonl")
    scores = [line["evaluation"]["score"] for line in lines(samples)]
    assert scores == [1, 0.75] * (SAMPLES // 2)


def check(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, missing: int, *more: str
) -> tuple[int, dict[str, Any]]:
    from amnesia_bench.recall import check as module

    monkeypatch.setattr(
        module,
        "open_engine",
        lambda _, candidate, **__: engine(inputs, missing if candidate.role == "post" else 0),
    )
    report = inputs.folder / "report.json"
    folders = ["--pre", inputs.checkpoint, "--post", inputs.post, "--prompts", inputs.prompts]
    work = inputs.folder / f"work-{missing}"
    command = [*folders, "--work", work, "--json", report, *more]
    code = main(["check", *map(str, command)])
    return code, json.loads(report.read_text())


def test_the_gate_finds_the_loss_of_some_values_and_says_its_cost_before(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = check(inputs, monkeypatch, 1, "--tasks", "niah_multivalue")
    assert code == ExitCode.REGRESSION
    (cell,) = report["cells"]
    (comparison,) = cell["comparisons"]
    assert comparison["difference"] == pytest.approx(
        cell["recall"]["pre"]["mean"] - cell["recall"]["post"]["mean"]
    )
    assert 0.1 < comparison["difference"] < 0.15
    printed = capsys.readouterr().out
    assert printed.index("At most 100 answers to prompts of 1 task and length") < printed.index(
        "Long-range recall"
    )
    assert "0.8" in printed


def test_equal_answers_are_undecided_with_few_prompts_and_ties_are_no_error(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, report = check(inputs, monkeypatch, 0, "--tasks", "niah_multivalue,ruler_fwe")
    assert code == ExitCode.DONE
    assert report["verdict"] == "undecided"
    assert {cell["comparisons"][0]["p_value"] for cell in report["cells"]} == {1}


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ("--suite rular", ["suite", "Did you mean ruler?"]),
        ("--suite quick", ["no prompts of niah_single_3 at 32768 tokens", "Available:"]),
        ("--tasks vt", ["no task 'vt'", "Did you mean ruler_vt?"]),
        ("--tasks ruler_fwe --lengths 4096", ["no prompts of ruler_fwe at 4096 tokens"]),
        ("--tasks ruler_fwe --samples 51", ["holds 50 prompts, but 51"]),
    ],
)
def test_a_wrong_choice_of_prompts_is_refused_before_a_model_is_loaded(
    inputs: Inputs, capsys: pytest.CaptureFixture[str], arguments: str, messages: Sequence[str]
) -> None:
    folders = ["--pre", inputs.checkpoint, "--post", inputs.post, "--prompts", inputs.prompts]
    command = ["check", *map(str, folders), *arguments.split()]
    assert main(command) == ExitCode.USER_ERROR
    error = capsys.readouterr().err
    assert all(message in error for message in messages)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ("--tasks multikey_2", ["no task 'multikey_2'", "Did you mean niah_multikey_2?"]),
        ("--tasks niah_multikey_1", ["niah_multikey_1 hides its needles in essays", "--haystack"]),
        ("--tasks ruler_qa_squad", ["needs a file with its questions", "dev-v2.0.json", "--squad"]),
        ("--tasks ruler_qa_squad --squad no.json", ["no.json: no such file", "rajpurkar"]),
        ("--tasks ruler_qa_squad --squad {hotpot}", ["not the questions of ruler_qa_squad"]),
        ("--tasks ruler_qa_hotpot --hotpot {squad}", ["not the questions of ruler_qa_hotpot"]),
        ("--tasks ruler_qa_hotpot --hotpot {text}", ["text.json: not JSON", "hotpot_dev"]),
        ("--tasks ruler_qa_hotpot --hotpot {hotpot}", ["has 3 questions", "--samples 3"]),
        ("--tasks ruler_vt", ["the example that its prompts begin with takes", "allows 500"]),
        ("--tasks ruler_cwe --lengths 500", ["--lengths ", "smallest length that works"]),
        ("--tasks ruler_fwe --lengths 60", ["smallest length that works"]),
        ("--tasks niah_multikey_3 --lengths 300", ["smallest length that works"]),
    ],
)
def test_prompts_that_cannot_be_built_are_refused_and_nothing_is_written(
    inputs: Inputs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    messages: Sequence[str],
) -> None:
    files = {name: tmp_path / f"{name}.json" for name in ("squad", "hotpot", "text")}
    write_squad(files["squad"])
    write_hotpot(files["hotpot"], questions=3)
    files["text"].write_text("no JSON")
    command = ["niah", "build", "--tokenizer", str(inputs.checkpoint), "--samples", "5"]
    command += ["--out", str(tmp_path / "out"), *arguments.format(**files).split()]
    command += [] if "--lengths" in arguments else ["--lengths", "8192"]
    assert main(command) == ExitCode.USER_ERROR
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["ruler_cwe", "ruler_fwe", "niah_multikey_2", "niah_multivalue"])
def test_the_length_of_the_hint_works(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    command = ["niah", "build", "--tokenizer", str(inputs.checkpoint), "--samples", "5"]
    command += ["--tasks", task, "--haystack", str(inputs.folder / "essays.json")]
    assert main([*command, "--lengths", "90", "--out", str(tmp_path / "a")]) == ExitCode.USER_ERROR
    error = " ".join(capsys.readouterr().err.split())
    length = error.split("--lengths ")[1].split()[0]
    assert main([*command, "--lengths", length, "--out", str(tmp_path / "b")]) == ExitCode.DONE
