"""generate, score and compare called from Python do what their commands do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import UserError
from amnesia_bench.inference.generation import GENERATIONS, RUN
from amnesia_bench.records.codec import to_json
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.requests.reasoning import GenerateRequest, ScoreRequest
from tests.support.fake_engine import FakeEngine
from tests.support.reasoning import answer, run_task, tiny_checkpoint, write_problems


def plain(cells: Sequence[Cell] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return cells as JSON, without the folder that their answers are in."""
    listed = json.loads(json.dumps(to_json(list(cells))))
    for cell in listed:
        for parent in cell["parents"]:
            del parent["location"]
    return list(listed)


def test_python_and_the_commands_answer_score_and_compare_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    data = write_problems("gsm8k", tmp_path / "data.jsonl", count=2)
    first, second = tmp_path / "python", tmp_path / "command"
    request = GenerateRequest(
        checkpoint=checkpoint,
        task="gsm8k",
        config=ab.load_eval("gsm8k", ["eval.repeats=2", "eval.max_new_tokens=8"]),
        data=data,
        method="+SFT",
    )
    answers = ab.generate(request, first)
    command = ["generate", "--checkpoint", str(checkpoint), "--task", "gsm8k", "--data", str(data)]
    command += ["--method", "+SFT", "eval.repeats=2", "eval.max_new_tokens=8"]
    assert main([*command, "--out", str(second)]) == 0
    for name in (GENERATIONS, RUN):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (len(answers.generations), answers.run.task) == (4, "gsm8k")

    scored = ab.score(ScoreRequest(answers=first))
    capsys.readouterr()
    assert main(["score", str(second), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert plain(printed["cells"]) == plain(scored.cells)
    report = ab.compare(ab.CompareRequest(a=first, b=second))
    assert [row.difference for row in report.rows] == [0.0, 0.0]
    assert main(["compare", str(first), str(second), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(to_json(report)))


def test_scores_in_another_folder_are_compared_too(tmp_path: Path) -> None:
    data = write_problems("gsm8k", tmp_path / "data.jsonl")
    for name in ("first", "second"):
        run_task("gsm8k", data, tmp_path / name, FakeEngine(answer))
        ab.score(ScoreRequest(answers=tmp_path / name), tmp_path / "scores" / name)
    with pytest.raises(UserError, match="not scored"):
        ab.compare(ab.CompareRequest(a=tmp_path / "first", b=tmp_path / "second"))
    scores = tmp_path / "scores"
    report = ab.compare(ab.CompareRequest(a=scores / "first", b=scores / "second"))
    assert [row.tied for row in report.rows] == [8, 8]
    with pytest.raises(UserError, match="two evaluations of gsm8k avg@3"):
        ab.compare(ab.CompareRequest(a=scores, b=scores / "second"))


def test_wrong_requests_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    config = ab.load_eval("gsm8k", ["eval.chat_template=false"])
    wanted = {"checkpoint": tmp_path / "none", "task": "gsm8k", "config": config}
    with pytest.raises(ValidationError, match="limit"):
        GenerateRequest(**wanted, limit=0)
    with pytest.raises(ValidationError, match=r"eval\.chat_template=false"):
        GenerateRequest(**wanted, chat_template=tmp_path / "x.jinja")
    of_another_task = GenerateRequest(**wanted | {"task": "livecodebench"})
    with pytest.raises(UserError, match="livecodebench needs a CodeEvalConfig"):
        ab.generate(of_another_task, tmp_path / "out")
    assert not (tmp_path / "out").exists()
