"""Models that differ in upper layers share the lower ones, and answer the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from tests.support.tiny_models import needle_prompts, requests_of, tiny_model, tiny_tokenizer

# The layer that changes, of the layers of each model.
MODELS = {"hypenet": 2, "jet_nemotron": 1, "qwen2": 1, "gemma3": 1, "qwen3_next": 1}


def engine_of(name: str, **options: Any) -> TransformersEngine:
    values = {"prefill_chunk_tokens": 32, "max_rows": 1, **options}
    return TransformersEngine(tiny_model(name), tiny_tokenizer(), EngineOptions(**values))


def change(engine: TransformersEngine, layer: int, seed: int) -> None:
    """Give one layer other weights, as a candidate does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in engine.module.get_decoder().layers[layer].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def texts(engine: TransformersEngine, requests: Any) -> dict[Any, tuple[int, ...]]:
    return {generation.key: generation.tokens for generation in engine.generate(requests)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1, 4])
def test_replayed_layers_change_no_answer_and_are_not_computed(name: str, rows: int) -> None:
    layer = MODELS[name]
    requests = requests_of(needle_prompts(6, 150, depths=3), new=4)
    shared, alone = engine_of(name, max_rows=rows), engine_of(name, max_rows=rows)
    memo = shared.share_layers([layer])
    assert memo is not None
    answers = []
    for seed in range(3):
        for engine in (shared, alone):
            if seed:
                change(engine, layer, seed)
        memo.first_changed = layer if seed else len(shared.module.get_decoder().layers)
        before = memo.replayed
        answers.append(texts(shared, requests))
        assert answers[-1] == texts(alone, requests)
        assert (memo.replayed > before) == bool(seed)
    assert answers[1] != answers[2], "the change must matter"
    total = memo.computed + memo.replayed
    assert memo.replayed == total * 2 / 3 * layer / len(shared.module.get_decoder().layers)


def test_forgotten_prompts_are_computed_again() -> None:
    engine = engine_of("qwen2")
    memo = engine.share_layers([1])
    assert memo is not None
    requests = requests_of(needle_prompts(2, 60, depths=2), new=2)
    first = texts(engine, requests)
    memo.forget()
    assert texts(engine, requests) == first
    assert memo.replayed == 0


def test_records_stop_when_their_memory_is_used_up() -> None:
    engine = engine_of("qwen2")
    memo = engine.share_layers([1])
    assert memo is not None
    memo._max_bytes = 0
    requests = requests_of(needle_prompts(3, 60, depths=2), new=2)
    first = texts(engine, requests)
    assert texts(engine, requests) == first
    total = memo.computed + memo.replayed
    assert 0 < memo.replayed < total / 4, "only the first call fits"


def test_a_model_that_does_not_replay_exactly_computes_everything(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of("qwen2")
    layer = engine.module.get_decoder().layers[0]
    forward, calls = layer.forward, []

    def moody(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(hidden_states, *args, **kwargs) * (1 + len(calls) / 100)

    monkeypatch.setattr(layer, "forward", moody)
    memo = engine.share_layers([0])
    assert memo is None
    assert "cannot be replayed" in caplog.text
