"""Snapshots of transformers' caches, and copies of them with more rows."""

import copy

import pytest
import torch

from amnesia_bench.inference.cache_snapshots import ResumableCache, can_resume, fork
from amnesia_bench.inference.out_of_memory import (
    MemoryExhaustedError,
    is_out_of_memory,
    reaching,
)
from amnesia_bench.modeling import HypeNetCache
from amnesia_bench.modeling.hybrid_cache import BlockLayer
from tests.support.tiny_models import EOS, tiny_model

KINDS = ["qwen2", "mistral_sliding", "qwen3_next", "olmo_hybrid", "falcon_h1", "lfm2", "gemma3"]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.inference_mode():
        yield


def _ids(num_tokens, seed=0, rows=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, EOS, (rows, num_tokens), generator=generator)


def _cache_of(model):
    known = HypeNetCache if model.config.model_type == "hypenet" else ResumableCache
    return known(model.config)


def _read(model, cache, ids):
    return model(ids, past_key_values=cache, use_cache=True).logits[:, -1]


@pytest.mark.parametrize("name", KINDS)
def test_a_snapshot_can_be_resumed_more_than_once(name):
    model = tiny_model(name)
    cache = ResumableCache(model.config)
    assert can_resume(cache)
    start = cache.snapshot()
    _read(model, cache, _ids(130))
    middle = cache.snapshot()
    expected = _read(model, cache, _ids(20, seed=1))
    for seed in (2, 1):
        cache.resume(middle)
        assert cache.get_seq_length() == 130
        found = _read(model, cache, _ids(20, seed=seed))
    assert torch.equal(found, expected)
    cache.resume(start)
    again = _read(model, cache, torch.cat([_ids(130), _ids(20, seed=1)], dim=1))
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["hypenet", *KINDS])
def test_a_fork_has_more_rows_and_leaves_its_source_alone(name):
    model = tiny_model(name)
    cache = _cache_of(model)
    _read(model, cache, _ids(130))
    snapshot, tails = cache.snapshot(), _ids(20, seed=1, rows=3)
    twins = fork(cache, _cache_of(model), 3)
    found = _read(model, twins, tails)
    twins.reorder_cache(torch.tensor([2, 0]))
    fewer = _read(model, twins, tails[[2, 0], :1])
    for row in range(3):
        cache.resume(snapshot)
        alone = _read(model, cache, tails[row : row + 1])
        torch.testing.assert_close(found[row], alone[0], rtol=0, atol=1e-3)
        if row == 2:
            alone = _read(model, cache, tails[row : row + 1, :1])
            torch.testing.assert_close(fewer[0], alone[0], rtol=0, atol=1e-3)


def test_softmax_layers_are_not_copied_by_a_snapshot_nor_by_decoding():
    model = tiny_model("qwen2")
    cache = ResumableCache(model.config)
    _read(model, cache, _ids(130))
    assert all(isinstance(layer, BlockLayer) for layer in cache.layers)
    assert cache.snapshot().states == (None,) * len(cache.layers)
    place = cache.layers[0].keys.data_ptr()
    for _ in range(20):
        _read(model, cache, _ids(1))
    assert cache.layers[0].keys.data_ptr() == place


def test_a_layer_of_an_unknown_class_is_named():
    class StrangeLayer(BlockLayer):
        pass

    cache = ResumableCache(tiny_model("qwen2").config)
    cache.layers[1] = StrangeLayer()
    assert cache.foreign_layer == "StrangeLayer"
    assert not can_resume(cache)
    assert not can_resume(copy.copy(tiny_model("minimax")(_ids(4)).past_key_values))


def test_what_the_allocators_say_is_told_from_other_errors():
    with pytest.raises(MemoryExhaustedError) as failure, reaching(70):
        torch.empty(2**50)
    assert failure.value.fits == 70
    with pytest.raises(RuntimeError, match="shape"), reaching(70):
        torch.zeros(2).reshape(3)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
