"""`amnesia eval niah`, `lm_eval` by itself with our model, and lm-eval's generator in ours: one
score per sample.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.inference.protocol import Engine, PromptRequest
from amnesia_bench.lm_eval_bridge.niah_task import task_config
from amnesia_bench.recall.niah import build_prompts
from amnesia_bench.records.evaluation import Generation
from amnesia_bench.requests.recall import BuildPromptsRequest
from tests.support.byte_checkpoints import byte_tokenizer, save_checkpoint, write_haystack
from tests.support.fake_engine import FakeEngine
from tests.support.niah_official import lm_eval_niah

TASK, LENGTH, SAMPLES = "niah_single_2", 4096, 6
CELL = f"{TASK}@{LENGTH}"


@dataclass(frozen=True)
class Inputs:
    checkpoint: Path
    prompts: Path
    texts: list[str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    checkpoint = save_checkpoint(folder / "checkpoint")
    texts = write_haystack(folder / "essays.json")
    build = BuildPromptsRequest(
        tokenizer=checkpoint,
        lengths=(LENGTH,),
        tasks=(TASK,),
        haystack=folder / "essays.json",
        samples=SAMPLES,
    )
    build_prompts(build, folder / "prompts")
    return Inputs(checkpoint, folder / "prompts", texts)


@pytest.fixture
def lm_eval_makes(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let lm-eval's generator find the haystack, and make so many samples instead of 500."""
    from lm_eval.tasks._index import TaskIndex

    _, prepare_niah = lm_eval_niah()
    # lm-eval may load the file a second time: what its task calls is what counts.
    called = task_config(TASK, resolve=True)["custom_dataset"].__globals__
    made, files = called["generate_samples"], TaskIndex._iter_yaml_files

    def make(samples: int) -> None:
        called["get_haystack"].cache_clear()
        monkeypatch.setattr(
            prepare_niah.datasets, "load_dataset", lambda *_, **__: {"text": inputs.texts}
        )
        monkeypatch.setitem(
            called,
            "generate_samples",
            lambda *args, **settings: made(*args, **{**settings, "num_samples": samples}),
        )
        # Looking through all of its thousands of files takes lm-eval ten seconds.
        monkeypatch.setattr(
            TaskIndex, "_iter_yaml_files", staticmethod(lambda root: files(root / "ruler"))
        )

    return make


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], None]:
    """Put an engine in the place of the one that runs the checkpoint."""
    from amnesia_bench.lm_eval_bridge import evaluation, model

    def put(engine: Engine) -> None:
        monkeypatch.setattr(evaluation, "open_engine", lambda *_, **__: engine)
        monkeypatch.setattr(model, "load_engine", lambda *_: engine)

    return put


def oracle(request: PromptRequest) -> str:
    """Find the value in every prompt but each third, whose last digit comes out wrong."""
    text = byte_tokenizer().decode(request.tokens)
    (value,) = re.findall(r"One of the special magic numbers for [\w-]+ is: (\d+)\.", text)
    return f" {value}." if request.key.doc % 3 else f" {value[:-1]}\x00."


def evaluate(inputs: Inputs, out: Path, *more: str) -> int:
    arguments = ["--checkpoint", str(inputs.checkpoint), "--out", str(out), "--tasks", TASK]
    samples = () if "--samples" in more else ("--samples", str(SAMPLES))
    lengths = ("--lengths", str(LENGTH))
    return main(["eval", "niah", *arguments, *lengths, *samples, *more])


def ours(inputs: Inputs) -> tuple[str, str]:
    return "--prompts", str(inputs.prompts)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores(out: Path) -> list[float]:
    return [float(line["outcome"] == "correct") for line in lines(out / CELL / "verdicts.jsonl")]


def texts(out: Path) -> list[str]:
    return [line["generation"]["text"] for line in lines(out / CELL / "generations.jsonl")]


def run_lm_eval(inputs: Inputs, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    """Run lm-eval's own command line, with the model `amnesia` in it."""
    from amnesia_bench.lm_eval_bridge.__main__ import run_lm_eval as lm_eval

    arguments = f"--model amnesia --tasks {TASK} --limit {SAMPLES} --log_samples".split()
    given = ["--output_path", str(out), "--metadata", json.dumps({"max_seq_lengths": [LENGTH]})]
    arguments += ["--model_args", f"pretrained={inputs.checkpoint}", *given, *more]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
    return lm_eval()


@pytest.mark.parametrize("kind", ["oracle", "model"])
def test_all_ways_give_the_same_answer_and_score_per_sample(
    kind: str,
    inputs: Inputs,
    install: Callable[[Engine], None],
    lm_eval_makes: Callable[[int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm_eval_makes(SAMPLES)
    if kind == "oracle":
        install(FakeEngine(oracle))
    assert evaluate(inputs, tmp_path / "ours", *ours(inputs)) == 0
    assert evaluate(inputs, tmp_path / "official", "--official-data") == 0
    assert run_lm_eval(inputs, tmp_path / "lm_eval", monkeypatch) == 0
    (log,) = (tmp_path / "lm_eval").rglob("samples_*.jsonl")
    (report,) = (tmp_path / "lm_eval").rglob("results_*.json")
    theirs = sorted(lines(log), key=lambda sample: sample["doc_id"])
    assert [sample[str(LENGTH)] for sample in theirs] == scores(tmp_path / "ours")
    assert [sample["resps"][0][0] for sample in theirs] == texts(tmp_path / "ours")
    assert scores(tmp_path / "official") == scores(tmp_path / "ours")
    assert texts(tmp_path / "official") == texts(tmp_path / "ours")
    cell = json.loads((tmp_path / "ours" / CELL / "cell.json").read_text())
    assert cell["value"] == json.loads(report.read_text())["results"][TASK][f"{LENGTH},none"]
    assert cell["n"] == SAMPLES
    if kind == "oracle":
        assert scores(tmp_path / "ours") == [0, 1, 1, 0, 1, 1]
    else:
        assert len(set(texts(tmp_path / "ours"))) == SAMPLES


def test_lm_evals_own_model_gives_the_same_answers(
    inputs: Inputs,
    lm_eval_makes: Callable[[int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in ("accelerate", "peft"):
        pytest.importorskip(package, reason=f"lm-eval's model hf needs {package}")
    lm_eval_makes(SAMPLES)
    assert evaluate(inputs, tmp_path / "ours", *ours(inputs)) == 0
    loaded = f"pretrained={inputs.checkpoint},dtype=float32"
    hf = ("--model", "hf", "--device", "cpu", "--model_args", loaded)
    assert run_lm_eval(inputs, tmp_path / "hf", monkeypatch, *hf) == 0
    (log,) = (tmp_path / "hf").rglob("samples_*.jsonl")
    theirs = sorted(lines(log), key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0] for sample in theirs] == texts(tmp_path / "ours")


class Dying:
    """An engine that dies after some answers, and counts what it is asked."""

    settings: dict[str, str] = {"engine": "dying"}  # noqa: RUF012

    def __init__(self, after: int) -> None:
        self.after = after
        self.asked: list[int] = []

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        for i, generation in enumerate(FakeEngine(oracle).generate(requests)):
            if i == self.after:
                raise KeyboardInterrupt
            self.asked.append(generation.key.doc)
            yield generation


def test_a_killed_evaluation_goes_on_where_it_stopped(
    inputs: Inputs, install: Callable[[Engine], None], tmp_path: Path
) -> None:
    install(Dying(after=2))
    assert evaluate(inputs, tmp_path / "out", *ours(inputs)) == 130
    assert not (tmp_path / "out" / CELL / "cell.json").exists()
    resumed = Dying(after=SAMPLES)
    install(resumed)
    assert evaluate(inputs, tmp_path / "out", *ours(inputs)) == 0
    assert resumed.asked == [2, 3, 4, 5]
    install(Dying(after=SAMPLES))
    assert evaluate(inputs, tmp_path / "whole", *ours(inputs)) == 0
    for name in ("generations.jsonl", "verdicts.jsonl", "cell.json", "run.json"):
        whole = (tmp_path / "whole" / CELL / name).read_bytes()
        assert (tmp_path / "out" / CELL / name).read_bytes() == whole


def test_a_prompt_too_long_for_the_model_is_refused_not_truncated(
    inputs: Inputs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lm_eval_makes: Callable[[int], None],
) -> None:
    lm_eval_makes(SAMPLES)
    assert evaluate(inputs, tmp_path / "out", *ours(inputs), "--max-context-tokens", "1024") == 2
    assert "do not fit the model's context of 1,024" in capsys.readouterr().err
    assert texts(tmp_path / "out") == []
    limit = f"pretrained={inputs.checkpoint},max_length=1024"
    assert run_lm_eval(inputs, tmp_path, monkeypatch, "--model_args", limit) == 2
    assert "do not fit the model's context of 1,024" in capsys.readouterr().err


def test_an_answer_is_as_long_as_asked_for(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert evaluate(inputs, out, *ours(inputs), "--max-new-tokens", "5") == 0
    answers = [line["generation"] for line in lines(out / CELL / "generations.jsonl")]
    assert {len(answer["tokens"]) for answer in answers} == {5}
    assert json.loads((out / CELL / "cell.json").read_text())["settings"]["max_new_tokens"] == "5"
    assert evaluate(inputs, out, *ours(inputs)) == 2  # lm-eval's 128 are another run
    assert evaluate(inputs, out, *ours(inputs), "--max-new-tokens", "0") == 2
    assert "--max-new-tokens 0: must be at least 1" in capsys.readouterr().err


def test_fewer_samples_than_asked_for_are_no_result(
    inputs: Inputs,
    install: Callable[[Engine], None],
    lm_eval_makes: Callable[[int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(FakeEngine(oracle))
    lm_eval_makes(SAMPLES - 2)
    assert evaluate(inputs, tmp_path / "out", "--official-data") == 4
    assert "lm-eval scored 4 of the 6 requested samples" in capsys.readouterr().err
    assert not (tmp_path / "out" / CELL / "cell.json").exists()
    assert evaluate(inputs, tmp_path / "more", *ours(inputs), "--samples", "7") == 2
    assert f"{CELL} holds 6 prompts, but 7 are requested" in capsys.readouterr().err
    assert evaluate(inputs, tmp_path / "none", *ours(inputs), "--samples", "0") == 2
    assert not (tmp_path / "more").exists()
    assert not (tmp_path / "none").exists()


def test_without_essays_or_with_code_the_official_generator_is_refused(
    inputs: Inputs,
    lm_eval_makes: Callable[[int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    lm_eval_makes(SAMPLES)
    _, prepare_niah = lm_eval_niah()
    monkeypatch.setattr(prepare_niah.datasets, "load_dataset", offline)
    assert evaluate(inputs, tmp_path / "out", "--official-data") == 6
    assert "lm-eval cannot download its data (no network)" in capsys.readouterr().err
    coded = Inputs(save_checkpoint(tmp_path / "coded"), inputs.prompts, inputs.texts)
    config = json.loads((coded.checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "evil.Tokenizer"]}
    (coded.checkpoint / "config.json").write_text(json.dumps(config))
    assert evaluate(coded, tmp_path / "out", "--official-data") == 2
    assert (
        "refers to code (auto_map), which lm-eval's generator would run" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_answers_of_another_checkpoint_are_never_scored(
    inputs: Inputs,
    install: Callable[[Engine], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(FakeEngine(oracle))
    assert evaluate(inputs, tmp_path / "out", *ours(inputs)) == 0
    before = (tmp_path / "out" / CELL / "cell.json").read_bytes()
    other = Inputs(save_checkpoint(tmp_path / "other", seed=1), inputs.prompts, inputs.texts)
    assert evaluate(other, tmp_path / "out", *ours(inputs)) == 2
    assert "holds the answers of another run: checkpoint was" in capsys.readouterr().err
    assert (tmp_path / "out" / CELL / "cell.json").read_bytes() == before


@pytest.mark.parametrize("option", ["--use_cache", "--cache_requests"])
def test_lm_evals_caches_that_mix_up_runs_are_refused(
    option: str,
    inputs: Inputs,
    install: Callable[[Engine], None],
    lm_eval_makes: Callable[[int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(FakeEngine(oracle))
    lm_eval_makes(SAMPLES)
    value = str(tmp_path / "cache") if option == "--use_cache" else "true"
    assert run_lm_eval(inputs, tmp_path, monkeypatch, option, value) == 2
    assert option in capsys.readouterr().err


@pytest.mark.slow
def test_it_says_what_it_does_and_lm_eval_says_nothing(inputs: Inputs, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amnesia_bench.cli.main", "eval", "niah", *ours(inputs)]
    command += ["--checkpoint", str(inputs.checkpoint), "--out", str(tmp_path / "out")]
    command += ["--method", "+QK-Restore"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"{CELL}: {SAMPLES} prompts", f"{CELL}: recall 0 %"]
    cell = json.loads((tmp_path / "out" / CELL / "cell.json").read_text())
    assert (cell["method"], cell["n"]) == ("+QK-Restore", SAMPLES)
