"""`amnesia tune` from the command line and from Python: results, resuming, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import ExitCode, MissingEnvironmentError, UserError
from amnesia_bench.records import codec
from amnesia_bench.records.roles import Role
from amnesia_bench.records.tuning import Fate, Tuning
from amnesia_bench.requests.engines import EngineChoice
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.requests.tuning import ReasoningProblems, TuneRequest
from amnesia_bench.tuning.evaluation import ModelEvaluator
from amnesia_bench.tuning.racing import Objective
from amnesia_bench.tuning.space import Mix
from tests.support.byte_checkpoints import byte_tokenizer, save_checkpoint, write_haystack
from tests.support.reasoning import write_problems


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints pre and post, prompts, and problems."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("tune")
    save_checkpoint(folder / "pre")
    model = AutoModelForCausalLM.from_pretrained(folder / "pre")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder / "post")
    byte_tokenizer().save_pretrained(folder / "post")
    write_haystack(folder / "essays.json")
    build = BuildPromptsRequest(
        tokenizer=folder / "pre",
        tasks=("niah_single_1", "niah_single_2"),
        lengths=(512,),
        samples=4,
        haystack=folder / "essays.json",
    )
    ab.build_prompts(build, folder / "prompts")
    write_problems("gsm8k", folder / "problems.jsonl")
    return folder


def request(folder: Path, work: Path, problems: int = 2, **changes: Any) -> TuneRequest:
    reasoning = ReasoningProblems(
        task="gsm8k",
        problems=problems,
        config=ab.load_eval("gsm8k", ["eval.repeats=1", "eval.max_new_tokens=3"]),
        data=folder / "problems.jsonl",
    )
    values = {
        "pre": folder / "pre",
        "post": folder / "post",
        "prompts": folder / "prompts",
        "reasoning": reasoning,
        "budget": 4.0,
        "max_new_tokens": 8,
        "work": work,
    }
    return TuneRequest(**{**values, **changes})


def typed(folder: Path, out: Path, work: Path, *options: object) -> int:
    words = [
        "tune", "--pre", folder / "pre", "--post", folder / "post",
        "--prompts", folder / "prompts", "--reasoning", "gsm8k:2",
        "--data", folder / "problems.jsonl", "--budget", 4, "--max-new-tokens", 8,
        "--out", out, "--work", work,
        "eval.max_new_tokens=3", *options,
    ]  # fmt: skip
    return main([*map(str, words)])


def record_of(out: Path) -> Tuning:
    return codec.from_json(Tuning, json.loads((out / "tuning.json").read_text()), "tuning.json")


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mixes answer by known chances: W_Q of layer 2 has the recall, W_K the reasoning."""

    def answers(
        self: ModelEvaluator, mix: Mix, objective: Objective, start: int, stop: int
    ) -> tuple[bool, ...]:
        shares = mix.by_place
        q, k = shares.get((2, Role.Q), 0.0), shares.get((2, Role.K), 0.0)
        chance = 0.2 + 0.6 * q if objective is Objective.RECALL else 0.8 - 0.6 * k
        drawn = np.random.default_rng(len(self._needles)).permutation(stop) / stop
        return tuple((drawn < chance).tolist())[start:]

    monkeypatch.setattr(ModelEvaluator, "answers", answers)


def test_random_models_tie_and_the_checkpoint_is_post(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(inputs, tmp_path / "out", tmp_path / "work") == ExitCode.DONE
    record = record_of(tmp_path / "out")
    assert record.chosen == "post"
    assert record.settings["other_weights"] == "searched"
    assert "the checkpoint is post's" in capsys.readouterr().out
    assert [c.fate for c in record.candidates[:2]] == [Fate.FINISHED] * 2
    assert record.work.answers <= 4 * record.work.full == 24
    weights = [(f / "model.safetensors").read_bytes() for f in (inputs / "post", tmp_path / "out")]
    assert weights[0] == weights[1]
    assert main(["verify", str(tmp_path / "out")]) == ExitCode.DONE
    # The same search from Python, with the answers at hand, changes nothing.
    again = ab.tune(request(inputs, tmp_path / "work"), tmp_path / "again")
    assert again == record


def test_the_best_mix_is_written_with_its_proof_and_its_card(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    out = tmp_path / "out"
    record = ab.tune(request(inputs, tmp_path / "work", problems=4, budget=40.0), out)
    chosen = record.candidate(record.chosen)
    shares = {(share.layer, share.role): share.alpha for share in chosen.shares}
    assert shares[2, Role.Q] == 1
    assert (2, Role.K) not in shares
    assert chosen.front
    assert record_of(out) == record
    labels = [confirmed.label for confirmed in record.confirmed]
    assert labels == ["post", "QK-Restore", record.chosen]
    assert [c.second for c in record.confirmed[2].recall_differences] == ["post", "QK-Restore"]
    assert main(["verify", str(out)]) == ExitCode.DONE
    proof = json.loads((out / "restoration.json").read_text())
    assert proof["proof"]["planned_tensors"] == len(proof["tensors"])
    card = (out / "README.md").read_text()
    assert "Confirmation on fresh questions" in card
    assert "--variant tuned.yaml" in card
    assert (out / "tuning.svg").read_text().startswith("<svg")
    assert f"chosen ({record.chosen})" in (out / "tuning.svg").read_text()
    # The variant in the folder writes the same weights again.
    words = ["restore", "--pre", inputs / "pre", "--post", inputs / "post"]
    words += ["--variant", out / "tuned.yaml", "--out", tmp_path / "again"]
    assert main([*map(str, words)]) == ExitCode.DONE
    weights = [(f / "model.safetensors").read_bytes() for f in (out, tmp_path / "again")]
    assert weights[0] == weights[1]


class KilledError(Exception):
    pass


def test_a_killed_search_resumes_with_the_same_result(inputs: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def dies(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 14:
            raise KilledError

    with pytest.raises(KilledError):
        ab.tune(request(inputs, tmp_path / "work"), tmp_path / "out", count=dies)
    assert not (tmp_path / "out").exists()
    answered: list[int] = []
    resumed = ab.tune(
        request(inputs, tmp_path / "work"),
        tmp_path / "out",
        count=lambda done, total: answered.append(done),
    )
    whole: list[int] = []
    fresh = ab.tune(
        request(inputs, tmp_path / "other"),
        tmp_path / "whole",
        count=lambda done, total: whole.append(done),
    )
    assert resumed == fresh
    assert len(answered) < len(whole), "answers of the killed search were not used"


def refusal(folder: Path, work: Path, **changes: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        ab.tune(request(folder, work, **changes), work / "out")
    assert not (work / "out").exists()
    return caught.value


def test_inputs_that_do_not_fit_are_refused_before_a_model_answers(
    inputs: Path, tmp_path: Path
) -> None:
    small = refusal(inputs, tmp_path, budget=2.5)
    assert "too small for one comparison" in small.what
    shared = refusal(inputs, tmp_path, fresh_prompts=inputs / "prompts")
    assert "fresh prompts are also prompts of the search" in shared.what
    few = refusal(inputs, tmp_path, problems=5)
    assert "8 different problems" in few.what
    assert few.hint is not None
    assert "TASK:4" in few.hint
    many = refusal(inputs, tmp_path, samples=3)
    assert "--samples 3" in many.what
    equal = refusal(inputs, tmp_path, pre=inputs / "post")
    assert "nothing to tune" in equal.what
    assert "no prompts of niah_single_3" in refusal(inputs, tmp_path, tasks=("niah_single_3",)).what
    inside = tmp_path / "post"
    shutil.copytree(inputs / "post", inside)
    with pytest.raises(UserError, match="which a restore only reads"):
        ab.tune(request(inputs, tmp_path, post=inside), inside / "out")
    assert not (tmp_path / "generations").exists()


def test_checkpoints_of_different_shapes_and_unreadable_rankings_are_refused(
    inputs: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(inputs / "pre", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 4}))
    with pytest.raises(UserError):
        ab.tune(request(inputs, tmp_path, pre=other), tmp_path / "out")
    ranking = tmp_path / "ranking.json"
    ranking.write_text("{}")
    refusal(inputs, tmp_path, rankings=(ranking,))


def test_what_is_typed_wrongly_says_what_to_type(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def error(*options: object) -> str:
        assert typed(inputs, out, tmp_path / "work", *options) == ExitCode.USER_ERROR
        return capsys.readouterr().err

    assert "--reasoning gsm8k:64" in error("--reasoning", "gsm8k")
    assert "--reasoning gsm8k:64" in error("--reasoning", "gsm8k:-3")
    assert "gsm8k" in error("--reasoning", "gsm9k:2")
    assert "which tune does not run" in error("--reasoning", "livecodebench:2", "--data", "x")
    assert "asks each problem once" in error("eval.repeats=4")
    assert "--budget" in error("--budget", 0)
    assert "no such file" in error("--data", tmp_path / "absent.jsonl")
    out.mkdir()
    assert "already exists" in error()
    assert not list(out.iterdir())


def test_without_local_data_the_command_says_where_to_put_the_file(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setenv("AMNESIA_STORE", str(tmp_path / "store"))
    reasoning = request(inputs, tmp_path).reasoning.model_copy(update={"data": None})
    with pytest.raises(MissingEnvironmentError) as caught:
        ab.tune(request(inputs, tmp_path, reasoning=reasoning), tmp_path / "out")
    assert "--data FILE" in (caught.value.hint or "")


def test_the_engine_of_a_request_is_transformers(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only the transformers engine"):
        request(inputs, tmp_path, engine=EngineChoice(name="vllm"))
