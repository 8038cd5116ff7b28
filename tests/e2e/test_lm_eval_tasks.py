"""Our tasks inside lm-eval's own evaluator give the scores of `amnesia score`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from amnesia_bench.config.eval_schema import EvalConfig
from amnesia_bench.config.load import load_option
from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.lm_eval_bridge.reasoning_tasks import INCLUDE_PATH
from amnesia_bench.reasoning.tasks import TASKS
from tests.support.fake_engine import FakeEngine
from tests.support.reasoning import byte_tokenizer, run_task, score_answers, write_problems

pytest.importorskip("lm_eval")
pytest.importorskip("math_verify")

NAMES = ("math500", "gsm8k", "aime24")


def says(request: PromptRequest) -> str:
    """Right in one form or another, or wrong, or nothing: by document and repeat alone."""
    doc, repeat = request.key.doc, request.key.repeat
    right = doc + 2
    forms = ("It is \\boxed{%d}.", "<think>\\boxed{0}</think>So \\boxed{%d.0}", "No idea, %d?")
    return forms[(doc + repeat) % 3] % (right if doc != 3 and (doc * repeat) % 4 < 3 else right + 1)


def task_file(name: str) -> dict[str, Any]:
    text = (INCLUDE_PATH / f"amnesia_{name}.yaml").read_text()
    found: dict[str, Any] = yaml.safe_load(text.replace("!function ", ""))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_task_file_says_what_our_config_and_source_say(name: str) -> None:
    file, source = task_file(name), TASKS[name].source
    config = load_option("eval", name, [], EvalConfig)
    assert file["dataset_path"] == source.hub_id
    assert file["dataset_kwargs"] == {"revision": source.revision}
    assert file.get("dataset_name") == source.config
    assert file["test_split"] == source.split
    assert file["repeats"] == file["filter_list"][0]["filter"][0]["k"] == config.repeats
    assert file["generation_kwargs"] == {
        "until": [],
        "max_gen_toks": config.max_new_tokens,
        "do_sample": True,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": 0,
    }
    assert config.top_k is None


@pytest.mark.parametrize("name", NAMES)
def test_lm_eval_reports_what_amnesia_score_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from amnesia_bench.lm_eval_bridge.model import AmnesiaLM

    data = write_problems(name, tmp_path / "data.jsonl")
    run_task(name, data, tmp_path / "run", FakeEngine(says), "eval.repeats=16")
    cells = {cell.metric: cell for cell in score_answers(tmp_path / "run").cells}

    # The shipped file but for where the data are, and where its functions lie.
    local = tmp_path / "tasks"
    local.mkdir()
    source = TASKS[name].source
    text = (INCLUDE_PATH / f"amnesia_{name}.yaml").read_text()
    text = text.replace(f"dataset_path: {source.hub_id}", "dataset_path: json")
    text = text.replace(f"dataset_name: {source.config}\n", "")
    text = text.replace(
        f"  revision: {source.revision}", f"  data_files: {{{source.split}: {data}}}"
    )
    (local / f"amnesia_{name}.yaml").write_text(text)
    (local / "functions.py").write_text((INCLUDE_PATH / "functions.py").read_text())
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    results = simple_evaluate(
        model=AmnesiaLM(FakeEngine(says), byte_tokenizer()),
        tasks=[f"amnesia_{name}"],
        task_manager=TaskManager(include_path=str(local), include_defaults=False),
        bootstrap_iters=1,
        log_samples=False,
        apply_chat_template=True,
    )["results"][f"amnesia_{name}"]
    for metric in ("avg", "maj"):
        cell = cells[f"{metric}@16"]
        assert results[f"{metric},all"] == pytest.approx(cell.value)
        assert 0 < results[f"{metric},all"] < 1
        assert results[f"{metric}_stderr,all"] == pytest.approx(cell.stderr)
