"""The vLLM engine through the real vLLM, against transformers on the same checkpoint.

Runs in an environment of its own: `make test-vllm`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.inference.load_engine import load_engine
from amnesia_bench.inference.protocol import EngineOptions, PromptRequest
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.inference.vllm_engine import VllmEngine
from amnesia_bench.records.evaluation import FinishReason, Generation, SampleKey, Sampling
from tests.support.vllm_models import VOCABULARY, save_hypenet, save_tokenizer

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]  # an engine starts in half a minute

CONTEXT = 4096


OPTIONS = {
    "qwen2": EngineOptions(dtype="float32", verify_prefix=3),
    "hypenet": EngineOptions(dtype="float32", verify_prefix=3, attn_logits_scaling="hype 500"),
}


@pytest.fixture(scope="module", params=list(OPTIONS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 or HypeNet, whose answers neither end at once nor repeat a single token."""
    folder = tmp_path_factory.mktemp("models") / request.param
    if request.param == "hypenet":
        save_hypenet(folder)
        save_tokenizer(folder)
        return folder
    save_tokenizer(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        tie_word_embeddings=False,
        eos_token_id=2,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[VllmEngine]:
    engine = load_engine("vllm", checkpoint, OPTIONS[checkpoint.name])
    assert isinstance(engine, VllmEngine)
    yield engine
    engine._llm.llm_engine.engine_core.shutdown()


def prompts(sampling: Sampling, *, count: int = 6) -> list[PromptRequest]:
    """A haystack of 1,500 tokens, a needle at a sixth, two sixths, ..., and the same question."""
    random = np.random.default_rng(1)
    haystack = random.integers(3, VOCABULARY, 1500)
    requests = []
    for doc in range(count):
        cut = 1500 * (doc + 1) // (count + 1)
        needle = random.integers(3, VOCABULARY, 9)
        tokens = np.concatenate([haystack[:cut], needle, haystack[cut:]]).astype(np.int32)
        key = SampleKey(task="niah", doc=doc, repeat=0)
        requests.append(PromptRequest(key=key, tokens=tokens, sampling=sampling, seed=None))
    return requests


def greedy(max_new_tokens: int = 12, stop: tuple[str, ...] = ()) -> Sampling:
    return Sampling(
        max_new_tokens=max_new_tokens, temperature=0.0, top_p=1.0, top_k=None, stop=stop
    )


def by_key(generations: Sequence[Generation]) -> dict[SampleKey, Generation]:
    return {generation.key: generation for generation in generations}


def test_answers_are_those_of_transformers(engine: VllmEngine, checkpoint: Path) -> None:
    requests = prompts(greedy())
    theirs = by_key(list(engine.generate(requests)))
    options = replace(OPTIONS[checkpoint.name], device="cpu", prefill_chunk_tokens=256)
    ours = by_key(list(TransformersEngine.load(checkpoint, options).generate(requests)))
    assert len({generation.tokens for generation in ours.values()}) > 1
    assert theirs == ours


def test_primed_prefixes_are_read_from_the_cache(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    run = engine._run

    def counted(*args: Any) -> list[Any]:
        outputs = run(*args)
        seen.extend((len(o.prompt_token_ids), o.num_cached_tokens or 0) for o in outputs)
        return outputs

    monkeypatch.setattr(engine, "_run", counted)
    engine._llm.reset_prefix_cache()
    requests = prompts(greedy(), count=5)
    list(engine.generate(requests))
    samples = sorted(cached for tokens, cached in seen if tokens == 1509)
    # Needles at 250, 500, ...: at least the whole chunks that two or more share. Three answers are
    # computed again without the cache.
    shared = [cut // engine._chunk * engine._chunk for cut in (250, 500, 750, 1000, 1000)]
    expected = sorted([0, 0, 0, *shared])
    assert samples[:3] == [0, 0, 0]
    assert len(samples) == len(expected)
    assert all(cached >= least for cached, least in zip(samples, expected, strict=True))
    # Each warm-up request resumes where the one before it ended, and computes one token more.
    warm = [(tokens, cached) for tokens, cached in seen if tokens < 1509]
    assert len(warm) == len(set(shared) - {0})
    assert sum(tokens - cached for tokens, cached in warm) <= max(shared) + len(warm)


def test_a_stop_string_ends_the_text_and_the_limit_is_told(engine: VllmEngine) -> None:
    request = prompts(greedy(), count=1)
    (plain,) = engine.generate(request)
    assert plain.finish_reason is FinishReason.LENGTH
    assert len(plain.tokens) == 12
    stop = plain.text.split()[2]
    (stopped,) = engine.generate(prompts(greedy(stop=(stop,)), count=1))
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.text == plain.text[: plain.text.index(stop)]


def test_an_end_token_of_the_generation_config_ends_the_answer(
    engine: VllmEngine, checkpoint: Path, tmp_path: Path
) -> None:
    (plain,) = engine.generate(prompts(greedy(), count=1))
    ends = engine._ends | {plain.tokens[4]}
    ended = VllmEngine(engine._llm, engine.tokenizer, EngineOptions(), ends, engine._output)
    (generation,) = ended.generate(prompts(greedy(), count=1))
    assert generation.finish_reason is FinishReason.EOS
    assert generation.tokens == plain.tokens[: plain.tokens.index(plain.tokens[4])]


def test_sampled_answers_depend_on_their_seed_alone(engine: VllmEngine) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=0.8, top_p=0.95, top_k=50, stop=())
    plain = VllmEngine(engine._llm, engine.tokenizer, EngineOptions(), engine._ends, engine._output)
    (first, *_) = prompts(sampling)
    # On a CPU, vLLM dies if it samples with a seed after a prefill in pieces, and it divides the
    # prompts of a hybrid at the ends of blocks.
    tokens = first.tokens[:100]
    asked = [
        PromptRequest(
            key=SampleKey(task="t", doc=0, repeat=repeat),
            tokens=tokens,
            sampling=sampling,
            seed=seed,
        )
        for repeat, seed in enumerate((7, 8, 7))
    ]
    together = by_key(list(plain.generate(asked)))
    alone = by_key(list(plain.generate(asked[1:2])))
    texts = [together[request.key].tokens for request in asked]
    assert texts[0] == texts[2] != texts[1]
    assert alone[asked[1].key] == together[asked[1].key]


def test_a_prompt_that_does_not_fit_is_refused(engine: VllmEngine) -> None:
    long = np.ones(CONTEXT - 5, np.int32)
    key = SampleKey(task="niah@4096", doc=3, repeat=0)
    request = PromptRequest(key=key, tokens=long, sampling=greedy(), seed=None)
    with pytest.raises(UserError, match="niah@4096 document 3: 4,091 prompt tokens"):
        list(engine.generate([request]))


def test_a_wrong_answer_out_of_the_cache_is_a_failure(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = engine._answers

    def corrupted(batch: Sequence[PromptRequest]) -> list[Generation]:
        return [replace(g, tokens=(g.tokens[0] ^ 1, *g.tokens[1:])) for g in answers(batch)]

    monkeypatch.setattr(engine, "_answers", corrupted)
    with pytest.raises(StageFailedError, match=r"niah document .*, token 0 of the answer"):
        list(engine.generate(prompts(greedy())))


def test_what_may_change_an_answer_is_recorded(engine: VllmEngine, checkpoint: Path) -> None:
    settings = dict(engine.settings)
    assert settings["engine"] == "vllm"
    scaling = "hype 500" if checkpoint.name == "hypenet" else None
    assert settings.get("attn_logits_scaling") == scaling
    assert settings["dtype"] == "float32"
    assert settings["max_context_tokens"] == str(CONTEXT)
    assert json.dumps(settings)
