"""A prefill in pieces: the same attention as in one piece, and no mask of chunk x context."""

import pytest
import torch
from transformers import masking_utils

from amnesia_bench.modeling import HypeNetCache, causal_attention
from amnesia_bench.modeling.causal_attention import CAUSAL_SDPA
from tests.numerics.conftest import random_ids
from tests.support.tiny_models import tiny_model


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def no_masks(monkeypatch):
    """Make any materialised mask of pairs of tokens an error."""

    def refuse(**_):
        raise AssertionError("a mask was made")

    monkeypatch.setitem(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "sdpa", refuse)
    monkeypatch.setattr(causal_attention, "sdpa_mask", refuse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_new_tokens_behind_a_past_see_what_a_mask_would_show_them(dtype, scaling):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 40, 16, generator=generator, dtype=dtype)
    key, value = torch.randn(2, 2, 2, 130, 16, generator=generator, dtype=dtype)
    found, _ = causal_attention.causal_sdpa(
        torch.nn.Module(), query, key, value, None, scaling=scaling
    )
    repeated = [x.double().repeat_interleave(3, dim=1) for x in (key, value)]
    mask = torch.ones(40, 130, dtype=torch.bool).tril(90)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.double(), *repeated, attn_mask=mask, scale=scaling
    )
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        found.double(), expected.transpose(1, 2), rtol=tolerance, atol=tolerance
    )


def _in_pieces(model, ids, cache, cuts):
    parts = [
        model(part, past_key_values=cache, use_cache=True) for part in ids.tensor_split(cuts, dim=1)
    ]
    return torch.cat([part.logits for part in parts], dim=1)


@pytest.mark.usefixtures("no_masks")
@pytest.mark.parametrize("batch", [1, 3])
def test_hypenet_reads_pieces_without_a_mask(make_model, batch):
    model = make_model("base", initializer_range=0.1)
    ids = random_ids(batch, 300)
    assert model.config._attn_implementation == "sdpa"
    found = _in_pieces(model, ids, HypeNetCache(model.config), [70, 130, 131, 200])
    torch.testing.assert_close(found, model(ids).logits, rtol=0, atol=2e-5)


@pytest.mark.usefixtures("no_masks")
@pytest.mark.parametrize("name", ["mistral", "llama", "qwen3_next", "olmo_hybrid"])
def test_other_models_do_too(name):
    model = tiny_model(name)
    model.set_attn_implementation("eager")
    ids = random_ids(1, 300) % 96
    expected = model(ids).logits
    model.set_attn_implementation(CAUSAL_SDPA)
    cache = model(ids[:, :1], use_cache=True).past_key_values
    found = _in_pieces(model, ids[:, 1:], cache, [70, 130, 131, 200])
    torch.testing.assert_close(found, expected[:, 1:], rtol=0, atol=2e-3)


def test_windows_and_padding_keep_their_masks():
    model = tiny_model("mistral_sliding")
    model.set_attn_implementation("eager")
    ids = random_ids(2, 300) % 96
    padding = torch.ones_like(ids)
    padding[1, :50] = 0
    expected = model(ids, attention_mask=padding).logits
    model.set_attn_implementation(CAUSAL_SDPA)
    cache = model(ids[:, :80], attention_mask=padding[:, :80], use_cache=True).past_key_values
    found = model(ids[:, 80:], attention_mask=padding, past_key_values=cache).logits
    torch.testing.assert_close(found[0], expected[0, 80:], rtol=0, atol=2e-4)
    torch.testing.assert_close(found[1], expected[1, 80:], rtol=0, atol=2e-4)


def test_a_padded_hypenet_batch_in_pieces_equals_one_piece(make_model):
    model = make_model("base", initializer_range=0.1)
    ids, padding = random_ids(2, 200), torch.ones(2, 200).long()
    padding[1, :50] = 0
    expected = model(ids, attention_mask=padding).logits[:, 80:]
    cache = HypeNetCache(model.config)
    model(ids[:, :80], attention_mask=padding[:, :80], past_key_values=cache)
    found = model(ids[:, 80:], attention_mask=padding, past_key_values=cache).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
