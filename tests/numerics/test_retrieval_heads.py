"""Copied tokens against eager attention of every kind, and in a model whose weights are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amnesia_bench.analysis.masking import without_heads
from amnesia_bench.analysis.models import measured, open_model
from amnesia_bench.analysis.probe import probing
from amnesia_bench.analysis.retrieval_heads import (
    AnsweredPrompt,
    CopyCounter,
    _most_likely,
    copied_tokens,
)
from amnesia_bench.analysis.row_blocks import RowBlock
from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import LayerKind, Role
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import open_checkpoint
from tests.numerics.test_attention_probe import BEYOND_SOFTMAX, SHARED_BLOCKS, WRAPPERS
from tests.support.full_attention import full_logits
from tests.support.induction import RETRIEVAL, expected_copies, induction_model
from tests.support.pico import PICOS, build
from tests.support.tiny_models import tiny_model

LAYERS = dict.fromkeys(range(2), LayerKind.FULL)


def _prompt(seed: int, tokens: int = 30, kinds: int = 4) -> AnsweredPrompt:
    """Of so few kinds of tokens that heads of random models often copy one."""
    ids = np.random.default_rng(seed).integers(10, 10 + kinds, tokens)
    return AnsweredPrompt(ids.astype(np.int32), (3, tokens - 8), tokens - 5)


def _by_argmax(weights: torch.Tensor, prompt: AnsweredPrompt) -> list[int]:
    """The definition of the paper, word by word, from the weights [H, T, T] of one layer."""
    copied = [0] * len(weights)
    for head, alpha in enumerate(weights):
        for t in range(prompt.answer, len(prompt.tokens)):
            source = int(alpha[t - 1].argmax())
            inside = prompt.needle[0] <= source < prompt.needle[1]
            copied[head] += inside and prompt.tokens[source] == prompt.tokens[t]
    return copied


def _attentions(model, prompt):
    """The weights of each softmax layer, by eager attention where it returns them."""
    ids = torch.from_numpy(prompt.tokens[None, :-1].astype(np.int64))
    module, layers = model.module, model.softmax_layers
    before = module.config._attn_implementation
    with torch.no_grad():
        try:
            module.set_attn_implementation("eager")
            weights = module(ids, use_cache=False, output_attentions=True).attentions or ()
        finally:
            module.set_attn_implementation(before)
        softmax = [each[0] for each in weights if each is not None and each.ndim == 4]
        if len(softmax) != len(layers):
            with full_logits(module) as logits:
                module(ids, use_cache=False)
                softmax = [logits[layer][0][0].softmax(dim=-1) for layer in layers]
    return dict(zip(layers, softmax, strict=True))


# Plain and shared keys, windows, gates, biases, fused projections, linear layers, a logit scale.
USUAL = {
    "gemma3",
    "gemma4_shared",
    "gpt_neox",
    "llama",
    "phi3",
    "qwen3_next",
    "falcon_h1",
    "cohere",
}


@pytest.mark.parametrize(
    "family",
    [
        family if family in USUAL else pytest.param(family, marks=pytest.mark.slow)
        for family in sorted(set(PICOS) - SHARED_BLOCKS - BEYOND_SOFTMAX - WRAPPERS)
    ],
)
def test_every_mapped_family_is_scored_as_by_eager_attention(family, tmp_path):
    build(family, tmp_path, seed=0)
    model, _ = open_model(tmp_path, "pre")
    total = 0
    for seed in range(3):
        prompt = _prompt(seed)
        found = copied_tokens(model, prompt)
        assert sorted(found.by_layer) == list(PICOS[family].softmax)
        for layer, weights in _attentions(model, prompt).items():
            assert found.by_layer[layer].tolist() == _by_argmax(weights, prompt)
            total += found.by_layer[layer].sum()
        ids = torch.from_numpy(prompt.tokens.astype(np.int64))
        with torch.no_grad():
            logits = model.module(ids[None], use_cache=False).logits[0, -5:]
            assert torch.equal(_most_likely(model, ids, 5), logits.argmax(dim=-1))
    assert total > 0


@pytest.mark.parametrize("name", ["hypenet", "jet_nemotron", "mistral_sliding", "gemma3"])
def test_logit_scales_and_windows_are_those_of_the_model(name):
    module = tiny_model(name)  # HypeNet with a logit scale
    kinds = {"hypenet": (1, 2), "gemma3": range(6), "mistral_sliding": range(4)}
    layers = kinds.get(name) or _softmax_layers(module)
    model = measured(module, name, dict.fromkeys(layers, LayerKind.FULL))
    for seed in range(4):
        prompt = _prompt(seed, tokens=150 if name == "mistral_sliding" else 40)
        found = copied_tokens(model, prompt)
        for layer, weights in _attentions(model, prompt).items():
            assert found.by_layer[layer].tolist() == _by_argmax(weights, prompt)


def _softmax_layers(module):
    with full_logits(module) as logits, torch.no_grad():
        module(torch.arange(8)[None], use_cache=False)
        return sorted(logits)


def test_padding_and_batches_change_no_count():
    module, prompt = tiny_model("llama"), _prompt(1)
    model = measured(module, "llama", dict.fromkeys(range(4), LayerKind.FULL))
    alone = copied_tokens(model, prompt)
    pad = 9
    ids = torch.from_numpy(prompt.tokens[:-1].astype(np.int64))
    padded = torch.stack([torch.cat([torch.zeros(pad, dtype=torch.long), ids])] * 2)
    mask = torch.ones_like(padded)
    mask[:, :pad] = 0
    targets = torch.from_numpy(prompt.copyable())
    position = torch.arange(padded.shape[1]) - pad
    sources = (padded[0] == torch.from_numpy(prompt.tokens.astype(np.int64))[targets, None]) & (
        (position >= prompt.needle[0]) & (position < prompt.needle[1])
    )
    counter = CopyCounter(targets - 1 + pad, sources)
    first = prompt.answer - 1 + pad
    with torch.no_grad(), probing(module, weights=counter, block_queries=2, first_query=first):
        module(padded, attention_mask=mask, use_cache=False)
    for layer, counts in alone.by_layer.items():
        assert counter.counts[layer].tolist() == [counts.tolist()] * 2


def test_only_rows_of_the_answer_are_computed():
    module, prompt = tiny_model("llama"), _prompt(0)
    seen = []
    with torch.no_grad(), probing(module, weights=seen.append, first_query=prompt.answer - 1):
        module(torch.from_numpy(prompt.tokens[None, :-1].astype(np.int64)), use_cache=False)
    assert {block.first_query for block in seen} == {prompt.answer - 1}
    assert {block.values.shape[2] for block in seen} == {len(prompt.tokens) - prompt.answer}


def test_a_tie_is_no_copy():
    rows, sources = torch.tensor([2]), torch.tensor([[False, True, False]])
    for weights, copied in (([0.5, 0.5, 0.0], 0), ([0.4, 0.6, 0.0], 1), ([0.0, 0.5, 0.5], 0)):
        counter = CopyCounter(rows, sources)
        counter(_block(torch.tensor(weights)))
        assert counter.counts[0].tolist() == [[copied]]
    both = CopyCounter(rows, torch.tensor([[True, True, False]]))  # two sources may be equal
    both(_block(torch.tensor([0.5, 0.5, 0.0])))
    assert both.counts[0].tolist() == [[1]]


def _block(weights: torch.Tensor) -> RowBlock:
    return RowBlock(
        layer=0, first_head=0, first_query=2, first_key=0, stop=3, values=weights[None, None, None],
        visible=torch.ones(1, 1, 1, 3, dtype=torch.bool),
    )  # fmt: skip


def _lookup(seed: int) -> AnsweredPrompt:
    """A key and three values among other tokens, and a question with the key at the end."""
    rng = np.random.default_rng(seed)
    filler = rng.integers(0, 100, 200)
    key, *values = rng.permutation(np.arange(100, 250))[:4]
    place = int(rng.integers(1, 190))
    tokens = [*filler[:place], key, *values, *filler[place:], key, *values]
    return AnsweredPrompt(np.array(tokens, np.int32), (place, place + 4), len(tokens) - 3)


def test_heads_made_to_retrieve_are_found_and_recall_hangs_on_them(tmp_path):
    module = induction_model()
    model = measured(module, "by hand", LAYERS)
    module.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    idle = [(1, 0), (1, 4), (0, 3)]
    for seed in range(5):
        prompt = _lookup(seed)
        assert expected_copies(prompt.tokens.tolist(), prompt.needle, prompt.answer) == (3, 3)
        found = copied_tokens(model, prompt)
        assert found.recalled
        copying = {
            (layer, head): count
            for layer, counts in found.by_layer.items()
            for head, count in enumerate(counts.tolist())
            if count
        }
        assert copying == dict.fromkeys(RETRIEVAL, 3)
        with without_heads(module, checkpoint, idle):
            assert copied_tokens(model, prompt).recalled
        with without_heads(module, checkpoint, RETRIEVAL[:1]):
            assert copied_tokens(model, prompt).recalled  # the other one suffices
        with without_heads(module, checkpoint, RETRIEVAL):
            assert not copied_tokens(model, prompt).recalled
        assert copied_tokens(model, prompt).recalled


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "gemma3", "gpt_neox", "falcon_h1"])
def test_masked_heads_are_zero_columns_of_the_output_projection(family, tmp_path):
    build(family, tmp_path, seed=0)
    model, _ = open_model(tmp_path, "pre")
    checkpoint = open_checkpoint(tmp_path)
    layer = PICOS[family].softmax[-1]
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        before = model.module(ids, use_cache=False).logits
        with without_heads(model.module, checkpoint, [(layer, 1), (layer, 3)]):
            masked = model.module(ids, use_cache=False).logits
        attention = attention_map(checkpoint.config, checkpoint.shapes)
        (name,) = {
            tensor.name
            for tensor in attention.tensors
            if (tensor.layer, tensor.role) == (layer, Role.O) and tensor.name.endswith("weight")
        }
        columns = model.module.get_parameter(name).unflatten(1, (4, -1))
        columns[:, [1, 3]] = 0
        expected = model.module(ids, use_cache=False).logits
    torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(masked, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("head", [(0, 6), (0, -1), (2, 0)])
def test_heads_that_do_not_exist_cannot_be_masked(head, tmp_path):
    module = induction_model()
    module.save_pretrained(tmp_path)
    with (
        pytest.raises(UserError, match=f"no softmax head {head[0]}.{head[1]}; it has heads 0 to 5"),
        without_heads(module, open_checkpoint(tmp_path), [head]),
    ):
        pass


@pytest.mark.parametrize(
    ("needle", "answer"), [((5, 5), 20), ((5, 21), 20), ((-1, 3), 20), ((2, 5), 30)]
)
def test_a_prompt_without_a_needle_before_its_answer_is_refused(needle, answer):
    with pytest.raises(UserError, match="needle"):
        AnsweredPrompt(np.zeros(30, np.int32), needle, answer)


def test_a_model_that_diverged_is_refused():
    module = tiny_model("llama")
    model = measured(module, "llama", dict.fromkeys(range(4), LayerKind.FULL))
    with torch.no_grad():
        module.model.layers[2].self_attn.k_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="layer 2: attention weights are NaN"):
        copied_tokens(model, _prompt(0))


def test_an_answer_that_the_needle_does_not_contain_is_refused():
    model = measured(tiny_model("llama"), "llama", dict.fromkeys(range(4), LayerKind.FULL))
    prompt = AnsweredPrompt(np.arange(30, dtype=np.int32), (3, 9), 25)
    with pytest.raises(UserError, match="contains no token of its answer"):
        copied_tokens(model, prompt)
