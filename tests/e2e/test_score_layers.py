"""score-layers, select-layers and convert --layers, one after the other, on a pico teacher."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.conversion.layer_replacement import replacement_request
from amnesia_bench.errors import ExitCode, StageFailedError, UserError
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.lm_eval_bridge.commonsense_tasks import load_commonsense_tasks, task_file
from amnesia_bench.lm_eval_bridge.model import AmnesiaLM
from amnesia_bench.lm_eval_bridge.retrieval_tasks import load_retrieval_tasks
from amnesia_bench.lm_eval_bridge.task_sources import HUB_TASKS
from amnesia_bench.lm_eval_bridge.zero_shot import accuracies
from amnesia_bench.records.ids import COMMONSENSE_TASKS
from amnesia_bench.requests.checkpoints import (
    ConvertRequest,
    ScoreLayersRequest,
    SelectLayersRequest,
)
from tests.support.byte_checkpoints import byte_tokenizer
from tests.support.layer_pair import LAYERS, write_pair, write_shape

TASKS: Mapping[str, Any] = {"retrieval": ("swde",), "commonsense": ("arc_easy", "hellaswag")}
MODELS = ("original", *(f"layer{layer}" for layer in range(LAYERS)))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_documents(folder: Path) -> dict[str, Path]:
    """Write documents whose answers are single letters, some of which a random model gives."""
    draw = random.Random(0)
    letters = [chr(code) for code in range(97, 123)]
    swde = [
        {"text": f"page {i}: the key is ", "value": draw.choice(letters), "other": 1}
        for i in range(10)
    ]
    arc = [
        {
            "question": f"Which of the letters is number {i}?",
            "choices": {"text": draw.sample(letters, 4), "label": ["A", "B", "C", "D"]},
            "answerKey": draw.choice("ABCD"),
        }
        for i in range(10)
    ]
    hellaswag = [
        {
            "activity_label": "Writing",
            "ctx_a": f"Someone writes {i} letters.",
            "ctx_b": "then they",
            "endings": [f"write {letter}." for letter in draw.sample(letters, 4)],
            "label": str(draw.randrange(4)),
        }
        for i in range(10)
    ]
    folder.mkdir(exist_ok=True)
    return {
        "swde": write_rows(folder / "swde.jsonl", swde),
        "arc_easy": write_rows(folder / "arc_easy.jsonl", arc),
        "hellaswag": write_rows(folder / "hellaswag.jsonl", hellaswag),
    }


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> ScoreLayersRequest:
    folder = tmp_path_factory.mktemp("selection")
    teacher, student = write_pair(folder)
    documents = write_documents(folder / "data")
    return ScoreLayersRequest(teacher=teacher, student=student, data=documents, **TASKS)


@pytest.fixture(scope="module")
def scores(request_: ScoreLayersRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scores of an uninterrupted run."""
    out = tmp_path_factory.mktemp("scores") / "scores"
    assert ab.score_layers(request_, out) == LAYERS
    return out


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_scores_are_those_of_the_converted_models(
    request_: ScoreLayersRequest, scores: Path, tmp_path: Path
) -> None:
    files = {f"{model}/results_{task}.json" for model in MODELS for task in request_.data}
    assert set(contents(scores)) == files | {"run.json"}
    ab.convert(replacement_request(request_.teacher, request_.student, 2), tmp_path / "layer2")
    tokenizer = byte_tokenizer()
    retrieval = load_retrieval_tasks(request_.retrieval, tokenizer, request_.data)
    commonsense = load_commonsense_tasks(request_.commonsense, request_.data)
    for model, folder in (("original", request_.teacher), ("layer2", tmp_path / "layer2")):
        engine = TransformersEngine.load(folder, EngineOptions())
        expected = accuracies(AmnesiaLM(engine, tokenizer), retrieval, None)
        module = AutoModelForCausalLM.from_pretrained(folder)
        lm = HFLM(module, backend="causal", tokenizer=tokenizer, batch_size=16)
        for task in (*retrieval, *commonsense):
            written = json.loads((scores / model / f"results_{task.name}.json").read_text())
            values = written["results"][task.name]
            if task in retrieval:
                assert values == {"alias": "swde", "contains,none": expected["swde"]}
            else:
                found = accuracies(lm, [task], None)
                assert list(values) == ["alias", "acc,none", "acc_norm,none"]
                assert (values["acc,none"], values["acc_norm,none"]) == tuple(found.values())
            assert written["n-samples"] == {task.name: {"effective": 10}}


def test_the_models_differ(scores: Path) -> None:
    kinds = {tuple(sorted(contents(scores / model).values())) for model in MODELS}
    assert len(kinds) > 1


def test_an_interrupted_run_resumes_and_cannot_be_read_before(
    request_: ScoreLayersRequest, scores: Path, tmp_path: Path
) -> None:
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if line == "layer1: arc_easy":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ab.score_layers(request_, tmp_path / "scores", progress=stop)
    assert len(contents(tmp_path / "scores")) == 1 + 3 + 3 + 1
    choice = SelectLayersRequest(scores=tmp_path / "scores", count=1, **TASKS)
    with pytest.raises(UserError, match="has scores of 2 of 3 layers") as caught:
        ab.select_layers(choice, tmp_path / "selection.json")
    assert "score-layers` again: it resumes" in str(caught.value.hint)

    rest: list[str] = []
    ab.score_layers(request_, tmp_path / "scores", progress=rest.append)
    assert rest[0] == "layer1: arc_easy"
    assert len(rest) == 3 * len(MODELS) - 7
    assert contents(tmp_path / "scores") == contents(scores)
    ab.score_layers(request_, tmp_path / "scores", progress=rest.append)
    assert len(rest) == 3 * len(MODELS) - 7


_KILLED = """
import os, signal, sys
import amnesia_bench as ab
from amnesia_bench.requests.checkpoints import ScoreLayersRequest
from pathlib import Path
request = ScoreLayersRequest.model_validate_json(Path(sys.argv[1]).read_text())
def progress(line):
    if line.startswith("layer0: hellaswag"):
        os.kill(os.getpid(), signal.SIGKILL)
ab.score_layers(request, Path(sys.argv[2]), progress=progress)
"""


@pytest.mark.slow
def test_a_killed_run_resumes(request_: ScoreLayersRequest, scores: Path, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text(request_.model_dump_json())
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "request.json")]
    killed = subprocess.run([*command, str(tmp_path / "scores")], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    ab.score_layers(request_, tmp_path / "scores")
    assert contents(tmp_path / "scores") == contents(scores)


def test_the_command_and_what_follows_it(
    request_: ScoreLayersRequest, scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The selection of the scores is converted to a hybrid with these softmax layers."""
    models = ["--teacher", str(request_.teacher), "--student", str(request_.student)]
    tasks = ["--retrieval", "swde", "--commonsense", "arc_easy,hellaswag"]
    given = [f"--data={task}={file}" for task, file in request_.data.items()]
    # The same run, so nothing is evaluated again.
    assert main(["score-layers", *models, *tasks, *given, "--out", str(scores)]) == ExitCode.DONE
    assert f"amnesia select-layers {scores} --count 1" in capsys.readouterr().out
    selection = tmp_path / "selection.json"
    command = ["select-layers", str(scores), "--count", "2", *tasks, "--out", str(selection)]
    assert main(command) == ExitCode.DONE
    assert main(command) == ExitCode.DONE  # the same selection stays as it is
    selected = json.loads(selection.read_text())["selected"]
    assert f"Softmax layers: {' '.join(map(str, selected))}\n" in capsys.readouterr().out
    shape = ["--size", str(write_shape(tmp_path)), "--stage", "2", "--layers", str(selection)]
    assert main(["convert", *models, *shape, "--out", str(tmp_path / "hybrid")]) == ExitCode.DONE
    mixers = json.loads((tmp_path / "hybrid" / "config.json").read_text())["mixer_types"]
    assert [i for i, mixer in enumerate(mixers) if mixer == "attn"] == selected


def test_a_selection_that_does_not_fit_is_refused(
    request_: ScoreLayersRequest, scores: Path, tmp_path: Path
) -> None:
    choice = SelectLayersRequest(scores=scores, count=LAYERS + 1, **TASKS)
    with pytest.raises(UserError, match="4 layers are requested, and 3 have scores"):
        ab.select_layers(choice, tmp_path / "none.json")
    ab.select_layers(choice.model_copy(update={"count": 1}), tmp_path / "one.json")
    with pytest.raises(UserError, match=r"one\.json: already exists"):
        ab.select_layers(choice.model_copy(update={"count": 2}), tmp_path / "one.json")
    shape = ab.load_hypenet(write_shape(tmp_path))
    request = ConvertRequest(
        teacher=request_.teacher, model=shape, stage=1, layers=tmp_path / "one.json"
    )
    with pytest.raises(UserError, match="stage 1 takes no selected layers"):
        ab.convert(request, tmp_path / "out")
    content = json.loads((tmp_path / "one.json").read_text())
    for spoilt, said in (
        ({**content, "selected": [2]}, "was changed since it was written"),
        ({"selected": [2]}, "was not written by `amnesia select-layers`"),
    ):
        (tmp_path / "spoilt.json").write_text(json.dumps(spoilt))
        changes = {"stage": 2, "layers": tmp_path / "spoilt.json"}
        with pytest.raises(UserError, match=said):
            ab.convert(request.model_copy(update=changes), tmp_path / "out")
    values = {**shape.values, "num_hidden_layers": 2, "mixer_types": ["attn"] * 2}
    changes = {"stage": 2, "model": shape.model_copy(update={"values": values})}
    with pytest.raises(UserError, match="selects from 3 layers, but the model has 2"):
        ab.convert(request.model_copy(update=changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_contents_is_refused(
    request_: ScoreLayersRequest, scores: Path, tmp_path: Path
) -> None:
    other = request_.model_copy(update={"samples": 3})
    with pytest.raises(UserError, match="has scores of another run"):
        ab.score_layers(other, scores)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists, with other files"):
        ab.score_layers(request_, tmp_path)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


def test_a_changed_or_missing_score_is_named(
    request_: ScoreLayersRequest, scores: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "scores"
    for name, content in contents(scores).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    path = copy / "layer2" / "results_swde.json"
    choice = SelectLayersRequest(scores=copy, count=1, **TASKS)
    path.write_text(path.read_text().replace('"contains,none": 0.', '"contains,none": 0.9'))
    with pytest.raises(UserError, match=r"results_swde\.json: was changed"):
        ab.select_layers(choice, tmp_path / "selection.json")
    path.unlink()
    with pytest.raises(UserError, match="layer2: has no score of swde; it has arc_easy, hellaswag"):
        ab.select_layers(choice, tmp_path / "selection.json")
    assert not (tmp_path / "selection.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--retrieval", "squad"], "retrieval=squad: unknown. "),
        (["--commonsense", "piqa"], "commonsense=piqa: unknown. Known: arc_challenge"),
        (["--data", "niah=x.jsonl"], "data=niah: unknown. Known: arc_challenge"),
        (["--data", "swde"], "--data swde: has no file"),
        (["--data", "swde=a", "--data", "swde=b"], "swde is given twice"),
        (["--samples", "0"], "--samples 0: must be at least 1"),
    ],
)
def test_a_mistyped_command_is_answered(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--teacher", "t", "--student", "s", "--out", str(tmp_path / "out")]
    assert main(["score-layers", *given, *options]) == ExitCode.USER_ERROR
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_documents_that_do_not_fit_a_task_are_named(tmp_path: Path) -> None:
    row = {"question": "?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}
    broken = {**row, "answerKey": "E"}
    with pytest.raises(UserError, match=r":1: not an object with question and choices and answer"):
        load_commonsense_tasks(("arc_easy",), {"arc_easy": write_rows(tmp_path / "a", [{}])})
    with pytest.raises(UserError, match="rows do not fit lm-eval's task arc_easy"):
        load_commonsense_tasks(("arc_easy",), {"arc_easy": write_rows(tmp_path / "b", [broken])})
    with pytest.raises(UserError, match="no such file"):
        load_commonsense_tasks(("arc_easy",), {"arc_easy": tmp_path / "c"})
    with pytest.raises(ValidationError, match="unknown"):
        ScoreLayersRequest(teacher=tmp_path, student=tmp_path, retrieval=("niah_single_1",))


def test_a_checkpoint_that_changes_meanwhile_ends_the_run(
    request_: ScoreLayersRequest, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    for path in request_.teacher.iterdir():
        (teacher / path.name).write_bytes(path.read_bytes())

    def change(line: str) -> None:
        if line == "layer0: swde":
            (teacher / "config.json").write_text((teacher / "config.json").read_text() + "\n")

    request = request_.model_copy(update={"teacher": teacher})
    with pytest.raises(StageFailedError, match=r"config\.json"):
        ab.score_layers(request, tmp_path / "scores", progress=change)
    assert set(contents(tmp_path / "scores" / "original")) == {
        f"results_{task}.json" for task in request.data
    }
    assert not (tmp_path / "scores" / "layer0").exists()


@pytest.mark.parametrize("task", COMMONSENSE_TASKS)
def test_the_data_sets_are_those_of_lm_evals_task_files(task: str) -> None:
    config, source = task_file(task), HUB_TASKS[task]
    split = config["test_split"] or config["validation_split"]
    assert (config["dataset_path"], config["dataset_name"], split) == source[:3]
