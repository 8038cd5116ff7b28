"""The hybrid cache: room to grow, kept states, batch surgery, snapshots."""

import copy
import gc
import weakref

import pytest
import torch
from transformers.cache_utils import Cache

from amnesia_bench.modeling import HypeNetCache, HypeNetConfig, HypeNetForCausalLM
from amnesia_bench.modeling.hybrid_cache import BLOCK_TOKENS, BlockLayer
from amnesia_bench.modeling.input_errors import InvalidModelInputError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = HypeNetConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        mixer_types=["lightning-attn", "attn", "lightning-attn"],
        lightning_nkv=2,
        attn_use_rope=False,
        initializer_range=0.4,
    )
    return HypeNetForCausalLM(config).eval()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def _ids(batch, num_tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 50, (batch, num_tokens), generator=generator)


def _filled(model, ids):
    cache = HypeNetCache(model.config)
    model(ids, past_key_values=cache)
    return cache


def _next(model, cache, token=7):
    batch = cache.layers[1].keys.shape[0]
    return model(torch.full((batch, 1), token), past_key_values=cache).logits


def test_decoding_copies_the_buffer_rarely_and_returns_views():
    layer, copies, last = BlockLayer(), 0, None
    layer.update(torch.zeros(1, 2, 1000, 4), torch.zeros(1, 2, 1000, 4))
    for t in range(2000):
        new = torch.full((1, 2, 1, 4), float(t))
        keys, values = layer.update(new, -new)
        copies += last is not None and keys.data_ptr() != last
        last = keys.data_ptr()
    assert keys.shape == (1, 2, 3000, 4)
    assert torch.equal(keys[0, 0, 1000:, 0], torch.arange(2000.0))
    assert torch.equal(values, -keys)
    assert copies <= 10  # by concatenation it would be 2,000
    assert layer.capacity <= 3000 * 1.25 + BLOCK_TOKENS


def test_growth_needs_one_copy_at_most_per_block():
    layer = BlockLayer()
    layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert layer.capacity == BLOCK_TOKENS
    assert layer.get_seq_length() == 1


def test_linear_layers_keep_their_state(model):
    cache = _filled(model, _ids(1, 10))
    assert cache.has_previous_state(0)
    assert cache.layers[0].state.dtype == torch.float32
    assert cache.get_seq_length() == 10
    before = cache.layers[0].state
    _next(model, cache)
    assert not torch.equal(before, cache.layers[0].state)


def test_transformers_before_5_21_is_enough(model, monkeypatch):
    """The GPU constraints hold 5.19, which vLLM takes; `pyproject.toml` promises 5.16."""
    ids = _ids(1, 10)
    expected = model(ids).logits[:, -1:]
    monkeypatch.delattr(Cache, "get_recurrent_state", raising=False)
    cache = _filled(model, ids[:, :9])
    last = model(ids[:, 9:], past_key_values=cache).logits
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [[2, 0], [1], [0, 0, 2, 1]])
def test_reorder_and_select_equal_a_batch_of_those_rows(model, rows):
    ids = _ids(3, 9)
    expected = _next(model, _filled(model, ids[rows]))
    for change in ("reorder_cache", "batch_select_indices"):
        cache = _filled(model, ids)
        getattr(cache, change)(torch.tensor(rows))
        torch.testing.assert_close(_next(model, cache), expected, rtol=0, atol=1e-5)


def test_repeat_interleave_equals_repeated_rows(model):
    ids = _ids(2, 9)
    cache = _filled(model, ids)
    cache.batch_repeat_interleave(3)
    expected = _next(model, _filled(model, ids.repeat_interleave(3, dim=0)))
    torch.testing.assert_close(_next(model, cache), expected, rtol=0, atol=1e-5)


def test_beam_search_equals_beam_search_without_a_cache(model):
    options = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(_ids(2, 8), **options)
    assert torch.equal(cached, model.generate(_ids(2, 8), use_cache=False, **options))


def test_deepcopy_is_independent(model):
    cache = _filled(model, _ids(1, 9))
    twin = copy.deepcopy(cache)
    expected = _next(model, cache)
    _next(model, cache)
    assert torch.equal(_next(model, twin), expected)


def test_prefix_is_resumed_from_snapshots_the_longest_first(model):
    haystack = _ids(1, 600)
    cache, snapshots = HypeNetCache(model.config), {}
    start = 0
    for cut in (100, 300, 600):
        model(haystack[:, start:cut], past_key_values=cache)
        snapshots[cut] = cache.snapshot()
        start = cut
    for cut in (600, 300, 300, 100):
        cache.resume(snapshots[cut])
        assert cache.get_seq_length() == cut
        tail = _ids(1, 30, seed=cut)
        resumed = model(tail, past_key_values=cache).logits
        whole = model(torch.cat([haystack[:, :cut], tail], dim=1)).logits[:, cut:]
        torch.testing.assert_close(resumed, whole, rtol=0, atol=2e-4)


def test_a_snapshot_that_nobody_keeps_frees_its_states(model):
    cache = _filled(model, _ids(1, 10))
    state = weakref.ref(cache.layers[0].state)
    cache.snapshot()
    _next(model, cache)
    gc.collect()
    assert state() is None


def test_snapshot_of_an_empty_cache(model):
    cache = HypeNetCache(model.config)
    empty = cache.snapshot()
    first = model(_ids(1, 12), past_key_values=cache).logits
    cache.resume(empty)
    assert torch.equal(model(_ids(1, 12), past_key_values=cache).logits, first)


def test_generate_continues_a_resumed_prefix(model):
    prefix, tail = _ids(1, 40), _ids(1, 5, seed=9)
    whole = torch.cat([prefix, tail], dim=1)
    cache = _filled(model, prefix)
    snapshot = cache.snapshot()
    expected = model.generate(whole, max_new_tokens=5, do_sample=False)
    for _ in range(2):
        cache.resume(snapshot)
        resumed = model.generate(whole, past_key_values=cache, max_new_tokens=5, do_sample=False)
        assert torch.equal(resumed, expected)


def test_void_snapshots_are_refused(model):
    cache = _filled(model, _ids(1, 10))
    short = cache.snapshot()
    _next(model, cache)
    long = cache.snapshot()
    cache.resume(short)
    with pytest.raises(InvalidModelInputError, match="snapshot of 11 tokens no longer matches"):
        cache.resume(long)
    cache.batch_repeat_interleave(2)
    with pytest.raises(InvalidModelInputError, match="snapshot of 10 tokens"):
        cache.resume(short)
    with pytest.raises(InvalidModelInputError, match="no longer matches"):
        _filled(model, _ids(1, 10)).resume(short)


def test_reset_empties_the_cache_and_leaves_snapshots_of_others_alone(model):
    cache = _filled(model, _ids(1, 10))
    state = cache.layers[0].state
    kept = state.clone()
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(state, kept)
    assert torch.equal(model(_ids(1, 10), past_key_values=cache).logits, model(_ids(1, 10)).logits)


def test_crop_and_foreign_caches_are_refused(model):
    from transformers import DynamicCache

    with pytest.raises(InvalidModelInputError, match="cannot be cropped"):
        _filled(model, _ids(1, 10)).crop(-1)
    foreign = DynamicCache()
    foreign.update(torch.zeros(1, 1, 3, 8), torch.zeros(1, 1, 3, 8), 0)
    with pytest.raises(InvalidModelInputError, match="DynamicCache that another model has filled"):
        model(_ids(1, 4), past_key_values=foreign)
