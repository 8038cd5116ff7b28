"""A decode step of a padded batch: it copies no cache, and waits for the device only once."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from amnesia_bench.inference.batch_decoder import BatchDecoder, PrefilledRows
from amnesia_bench.inference.caches import ResumableCache
from amnesia_bench.inference.decoding import DecodingRow
from amnesia_bench.inference.language_model import LanguageModel, prepare_model
from amnesia_bench.modeling import HypeNetCache, HypeNetForCausalLM
from amnesia_bench.modeling.causal_attention import CAUSAL_SDPA, causal_sdpa
from amnesia_bench.modeling.hybrid_cache import BlockLayer
from amnesia_bench.modeling.named_configs import load_model_config
from tests.numerics.conftest import random_ids
from tests.support.dispatch import AllocatedBytes, DeviceWaits
from tests.support.tiny_models import requests_of, tiny_model

ROWS, COLUMNS = 8, 4096


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("mask_heads", [1, 6])
@pytest.mark.parametrize("boolean", [True, False])
def test_one_token_of_grouped_heads_attends_as_with_repeated_keys(mask_heads, boolean):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 6, 1, 16, generator=generator)
    key, value = torch.randn(2, 3, 2, 50, 16, generator=generator)
    mask = torch.rand(3, mask_heads, 1, 50, generator=generator) > 0.3
    if not boolean:
        mask = mask.float() * 3
    actual, _ = causal_sdpa(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, *(x.repeat_interleave(3, dim=1) for x in (key, value)), attn_mask=mask, scale=0.3
    )
    torch.testing.assert_close(actual, expected.transpose(1, 2), rtol=1e-5, atol=1e-6)


def _fake_model(name):
    """Return a model with full-size heads, without memory for its weights."""
    if name == "hypenet":
        return HypeNetForCausalLM(load_model_config("2b")), HypeNetCache
    config = AutoConfig.for_model(
        name, vocab_size=256, hidden_size=1024, intermediate_size=1024, num_hidden_layers=2,
        num_attention_heads=16, num_key_value_heads=2, head_dim=128,
        max_position_embeddings=2 * COLUMNS, sliding_window=None,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config), ResumableCache


def _fill(model, cache):
    """Fill a cache with ROWS x COLUMNS tokens; return the bytes of its keys and values."""
    config, total = model.config, 0
    for layer in cache.layers:
        if isinstance(layer, BlockLayer):
            new = torch.empty(ROWS, config.num_key_value_heads, COLUMNS, config.head_dim)
            layer.update(new, new)
            total += 2 * new.nbytes
        else:
            size = config.lightning_head_dim
            layer.restore(torch.empty(ROWS, config.lightning_nh, size, size), COLUMNS)
    return total


@pytest.mark.parametrize("name", ["hypenet", "qwen2", "qwen3", "llama", "mistral"])
def test_a_decode_step_of_a_padded_batch_copies_no_keys_and_values(name):
    """transformers before 5.23 repeats them for every query head: 8 x the cache in this test.

    On fake tensors, any look at a value raises an error.
    """
    with FakeTensorMode():
        module, cache_class = _fake_model(name)
        module.eval().set_attn_implementation(CAUSAL_SDPA)
        model = LanguageModel(module, cache_class, True, None, True)
        cache = model.new_cache()
        cached = _fill(module, cache)
        tokens = torch.zeros(ROWS, 1, dtype=torch.long)
        with AllocatedBytes() as allocated:
            model.advance(cache, tokens, torch.arange(ROWS))
    assert cache.get_seq_length() == COLUMNS + 1
    states = ROWS * 21 * 16 * 128**2 * 4 if name == "hypenet" else 0
    # A linear layer writes its state three times. The rest is activations, positions and the mask.
    assert allocated.total - 3 * states < 0.25 * cached


@pytest.mark.parametrize("name", ["hypenet", "jet_nemotron", "qwen2", "mistral"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_decode_step_waits_for_the_device_once_to_read_the_tokens(name, temperature):
    model = prepare_model(tiny_model(name))
    prompts = [np.arange(1, 1 + length, dtype=np.int32) for length in (9, 12, 7)]
    requests = requests_of(prompts, new=5, temperature=temperature, top_p=0.9)
    decoder = BatchDecoder(model, (frozenset(), str))
    decoder.refill([DecodingRow.of(request) for request in requests], _parts(model, prompts))
    with DeviceWaits() as waits:
        finished = [row for _ in range(5) for row in decoder.step()]
    assert len(finished) == 3
    assert waits.counts == {"torch.Tensor.tolist": 5}


def _parts(model, prompts):
    for prompt in prompts:
        logits, cache = model.advance(model.new_cache(), torch.from_numpy(prompt).long()[None])
        yield PrefilledRows(logits, cache, [0])


@pytest.mark.parametrize("past", [0, 40])
def test_the_prefill_of_a_padded_batch_copies_its_mask_from_the_device_once(past):
    model = tiny_model("hypenet")
    cache = HypeNetCache(model.config)
    mask = torch.ones(3, 100, dtype=torch.long)
    mask[1, :30], mask[2, :60] = 0, 0
    if past:
        model(random_ids(3, past) % 90, attention_mask=mask[:, :past], past_key_values=cache)
    ids = random_ids(3, 100 - past) % 90
    with DeviceWaits() as waits:
        model(ids, attention_mask=mask, past_key_values=cache)
    assert waits.counts == {"torch.Tensor.cpu": 1}


def test_a_token_with_a_mask_of_four_dimensions_equals_one_with_two():
    model, mask = tiny_model("hypenet"), torch.ones(2, 51, dtype=torch.long)
    mask[1, :20] = 0
    ids = random_ids(2, 51) % 90
    logits = []
    for shape in ((2, 51), (2, 1, 1, 51)):
        cache = HypeNetCache(model.config)
        model(ids[:, :50], attention_mask=mask[:, :50], past_key_values=cache)
        step = model(ids[:, 50:], attention_mask=mask.view(shape), past_key_values=cache)
        logits.append(step.logits)
    assert torch.equal(*logits)
