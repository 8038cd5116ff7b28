"""Snapshots of caches, copies of one row, and rows of unequal length in one cache."""

from __future__ import annotations

import copy

import pytest
import torch

from amnesia_bench.inference.caches import (
    JoinedRows,
    ResumableCache,
    RowCache,
    can_join,
    can_resume,
    fork,
)
from amnesia_bench.inference.language_model import prepare_model
from amnesia_bench.inference.memory import MemoryExhaustedError, catching_oom, is_out_of_memory
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
    assert cache.unsupported_layer == "StrangeLayer"
    assert not can_resume(cache)
    assert not can_resume(copy.copy(tiny_model("minimax")(_ids(4)).past_key_values))


def test_what_the_allocators_say_is_told_from_other_errors():
    with pytest.raises(MemoryExhaustedError) as failure, catching_oom(70):
        torch.empty(2**50)
    assert failure.value.fits == 70
    with pytest.raises(RuntimeError, match="shape"), catching_oom(70):
        torch.zeros(2).reshape(3)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))


LENGTHS = (300, 40, 1, 130)


def ids(rows, num_tokens, seed=0):
    return torch.randint(0, EOS, (rows, num_tokens), generator=torch.Generator().manual_seed(seed))


def joined(model, lengths=LENGTHS):
    """Return a batch of rows, its padding, and the rows' own caches."""
    batch, alone = JoinedRows(model.new_cache(), len(lengths), max(lengths)), []
    for i, num_tokens in enumerate(lengths):
        cache = model.advance(model.new_cache(), ids(1, num_tokens, seed=i))[1]
        batch.add(cache, [0])
        alone.append(cache)
    return batch.cache, max(lengths) - torch.tensor(lengths), alone


@pytest.mark.parametrize("name", ["hypenet", "qwen2", "gpt_neox", "mistral_sliding", "gemma3"])
def test_joined_rows_go_on_as_they_do_alone(name):
    model = prepare_model(tiny_model(name))
    assert model.joins_rows
    assert model.row_cache.windows or name not in ("mistral_sliding", "gemma3")
    cache, padding, alone = joined(model)
    capacity = sum(layer.capacity for layer in cache.layers if isinstance(layer, BlockLayer))
    # 300 tokens lie in blocks of 512 in all.
    for step in range(220):
        tokens = ids(len(LENGTHS), 1, seed=100 + step)
        found = model.advance(cache, tokens, padding)[0]
        expected = [model.advance(own, tokens[i : i + 1])[0] for i, own in enumerate(alone)]
        torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=2e-3)
    grown = sum(layer.capacity for layer in cache.layers if isinstance(layer, BlockLayer))
    assert grown > capacity or not capacity


@pytest.mark.parametrize("name", ["hypenet", "qwen2", "gemma3"])
def test_rows_can_leave_and_the_padding_goes_with_them(name):
    model = prepare_model(tiny_model(name))
    cache, padding, alone = joined(model)
    kept = torch.tensor([3, 1])
    cache.reorder_cache(kept)
    tokens = ids(2, 1, seed=9)
    found = model.advance(cache, tokens, padding[kept])[0]
    expected = [model.advance(alone[i], tokens[j : j + 1])[0] for j, i in enumerate(kept)]
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-3)


def test_several_rows_of_one_length_are_added_at_once_and_the_source_stays_as_it_is():
    model = prepare_model(tiny_model("hypenet"))
    pair = model.advance(model.new_cache(), ids(2, 70))[1]
    single = model.advance(model.new_cache(), ids(1, 90, seed=1))[1]
    batch = JoinedRows(model.new_cache(), 3, 90)
    batch.add(pair, [0, 1])
    batch.add(single, [0])
    states = [layer.state.clone() for layer in (pair.layers[0], single.layers[0])]
    tokens = ids(3, 1, seed=2)
    found = model.advance(batch.cache, tokens, torch.tensor([20, 20, 0]))[0]
    for layer, state in zip((pair.layers[0], single.layers[0]), states, strict=True):
        assert torch.equal(layer.state, state)
    expected = [model.advance(pair, tokens[:2])[0], model.advance(single, tokens[2:])[0]]
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["hypenet", "jet_nemotron", "mistral_sliding", "gemma3"])
def test_rows_move_to_a_shorter_batch_with_copies_of_a_new_row(name):
    model = prepare_model(tiny_model(name))
    cache, _, alone = joined(model)
    # The row of 300 tokens leaves, so 170 columns of padding do. One new prompt takes two rows.
    batch = JoinedRows(model.new_cache(), 4, 130)
    batch.add(cache, [3, 1], release=True)
    assert cache.get_seq_length() == 0
    new = model.advance(model.new_cache(), ids(1, 50, seed=20))[1]
    batch.add(new, [0, 0])
    assert batch.cache.get_seq_length() == 130
    padding = torch.tensor([0, 90, 80, 80])
    for step in range(3):
        tokens = ids(4, 1, seed=30 + step)
        tokens[3] = tokens[2]
        found = model.advance(batch.cache, tokens, padding)[0]
        sources = (alone[3], alone[1], new)
        expected = [model.advance(own, tokens[i : i + 1])[0] for i, own in enumerate(sources)]
        torch.testing.assert_close(found[:3], torch.cat(expected), rtol=0, atol=2e-3)
        torch.testing.assert_close(found[2], found[3], rtol=0, atol=1e-4)


def stored_bytes(cache):
    """Return the bytes of all tensors of a cache, without the spare room of buffers."""
    total = 0
    for layer in cache.layers:
        dicts = [getattr(layer, name, {}) for name in ("recurrent_states", "conv_states")]
        tensors = [layer.keys, layer.values] if hasattr(layer, "keys") else []
        tensors += [x for states in dicts for x in states.values()]
        total += sum(x.nbytes for x in tensors if x is not None)
    return total


@pytest.mark.parametrize("name", ["hypenet", "jet_nemotron", "mistral_sliding", "qwen3_next"])
def test_the_size_of_a_row_is_measured_for_all_lengths(name):
    model = prepare_model(tiny_model(name))
    for num_tokens in (40, 400):
        cache = model.advance(model.new_cache(), ids(1, num_tokens))[1]
        measured = model.row_cache.bytes_at(num_tokens)
        # A window of W tokens stores W - 1 of them.
        windows = sum(size for size, _ in model.row_cache.windows)
        assert stored_bytes(cache) <= measured <= stored_bytes(cache) + windows
    assert isinstance(model.row_cache, RowCache)


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2", "minimax"])
def test_other_caches_are_not_joined(name):
    model = prepare_model(tiny_model(name))
    cache = model.advance(model.new_cache(), ids(1, 20))[1]
    assert not can_join(cache)
    assert not model.joins_rows


def test_caches_of_our_layers_can_be_joined_and_none_cannot():
    assert can_join(HypeNetCache(tiny_model("hypenet").config))
    assert can_join(ResumableCache(tiny_model("qwen2").config))
    assert not can_join(None)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rope_that_follows_the_longest_row_is_not_joined(kind):
    module = tiny_model("qwen2")
    assert prepare_model(module).joins_rows
    module.config.rope_parameters["rope_type"] = kind
    assert not prepare_model(module).joins_rows


def test_a_model_that_takes_no_notice_of_padding_is_found_out():
    module = tiny_model("llama")

    def without_mask(_, args, kwargs):
        return args, {**kwargs, "attention_mask": None}

    module.register_forward_pre_hook(without_mask, with_kwargs=True)
    assert not prepare_model(module).joins_rows


def test_a_model_that_counts_positions_by_its_cache_is_found_out():
    module = tiny_model("llama")

    def without_positions(_, args, kwargs):
        return args, {**kwargs, "position_ids": None}

    module.register_forward_pre_hook(without_positions, with_kwargs=True)
    assert not prepare_model(module).joins_rows
