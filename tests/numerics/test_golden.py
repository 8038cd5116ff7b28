"""Logits and greedy continuation of the authors' own code (float32), by every way through."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from amnesia_bench.modeling import HypeNetCache, HypeNetForCausalLM
from tests.numerics.conftest import GOLDEN

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def reference():
    return load_file(GOLDEN / "reference.safetensors")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    loaded = AutoModelForCausalLM.from_pretrained(GOLDEN, attn_implementation=request.param)
    assert type(loaded) is HypeNetForCausalLM
    return loaded.eval()


@torch.no_grad()
def test_full_forward(model, reference):
    logits = model(reference["input_ids"]).logits
    assert (logits - reference["logits"]).abs().max() <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 7, 64, 100, 150])
def test_prefill_in_chunks_with_cache(model, reference, chunk):
    ids, cache, parts = reference["input_ids"], HypeNetCache(model.config), []
    for start in range(0, ids.shape[1], chunk):
        part = model(ids[:, start : start + chunk], past_key_values=cache, use_cache=True)
        assert part.past_key_values is cache
        parts.append(part.logits)
    assert (torch.cat(parts, dim=1) - reference["logits"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 33}, {"use_cache": False}])
def test_greedy_continuation(model, reference, options):
    ids, greedy = reference["input_ids"], reference["greedy"]
    generated = model.generate(ids, max_new_tokens=greedy.shape[1], do_sample=False, **options)
    assert torch.equal(generated[:, ids.shape[1] :], greedy)


@torch.no_grad()
def test_logits_of_the_last_token_only(model, reference):
    logits = model(reference["input_ids"], logits_to_keep=1).logits
    assert logits.shape[1] == 1
    assert (logits - reference["logits"][:, -1:]).abs().max() <= TOLERANCE
