"""Texts through a whole model: the histograms are autograd's, and nothing is left behind."""

import numpy as np
import pytest
import torch

from amnesia_bench.analysis.distance import Prompt, attention_maps, head_distances
from amnesia_bench.analysis.gradients import gradients_by_distance, histograms_of
from amnesia_bench.analysis.models import measured
from amnesia_bench.analysis.texts import Text, Texts, with_targets_of
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.roles import LayerKind
from tests.support.full_attention import full_logits, histogram
from tests.support.pico import PICOS
from tests.support.tiny_models import tiny_model

TOKENS = 40
PARENTS = (Parent(role="pre", location="a", identity="b"),) * 2


def _texts(count):
    rng = np.random.default_rng(0)
    taken = []
    for _ in range(count):
        trained = rng.random(TOKENS) < 0.5
        trained[0] = False
        taken.append(Text(rng.integers(0, 95, TOKENS).astype(np.int32), trained))
    return Texts("made up", TOKENS, tuple(taken), 0, 0, "made up")


def _measured(family):
    if family == "hypenet":
        layers = dict.fromkeys((1, 2), LayerKind.FULL)
    else:
        pico = PICOS[family]
        layers = {
            layer: LayerKind.SLIDING if layer in pico.sliding else LayerKind.FULL
            for layer in pico.softmax
        }
    return measured(tiny_model(family).double(), family, layers)


def _state(module):
    names = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
    return [[vars(each).get(name) for name in names] for each in module.modules()]


# The logits of RecurrentGemma are capped behind the head; Gemma 3 mixes windows and full layers.
@pytest.mark.parametrize("family", ["hypenet", "llama", "gemma3", "recurrent_gemma"])
def test_each_text_is_one_loss_over_its_trained_tokens(family):
    model, texts = _measured(family), _texts(2)
    before = {name: p.requires_grad for name, p in model.module.named_parameters()}
    state = _state(model.module)
    found = histograms_of(model, texts)
    assert before == {name: p.requires_grad for name, p in model.module.named_parameters()}
    assert state == _state(model.module)
    assert all(p.grad is None for p in model.module.parameters())
    for i, text in enumerate(texts.taken):
        ids = torch.from_numpy(text.tokens.astype(np.int64))[None]
        targets = ids.masked_fill(~torch.from_numpy(text.trained), -100)[:, 1:]
        with full_logits(model.module) as logits:
            output = model.module(ids, use_cache=False).logits[:, :-1]
            torch.nn.functional.cross_entropy(output.mT, targets, reduction="sum").backward()
            for layer, (scores,) in logits.items():
                expected = histogram(scores.grad.abs()).numpy()
                np.testing.assert_allclose(found.sums[layer][i], expected, rtol=1e-9, atol=1e-14)
        model.module.zero_grad()


def test_the_pooled_curve_is_of_layers_without_a_window():
    model, texts = _measured("gemma3"), _texts(3)
    found = histograms_of(model, texts)
    record = gradients_by_distance(model, texts, 20, PARENTS, np.random.default_rng(0))
    pairs = 4 * 3 * (TOKENS - np.arange(21))
    assert model.full_layers == (5,)
    assert record.curve.mean == pytest.approx((found.sums[5].sum(axis=0)[:21] / pairs).tolist())
    assert [each.layer for each in record.layers] == [0, 1, 2, 3, 4, 5]
    assert record.layers[0].mean[4:] == (0.0,) * 17  # behind a window of four
    assert record.layers[0].reach.nine_tenths.value <= 3
    assert all(0 <= reach < TOKENS for reach in record.layers[5].head_half_reach)


def test_texts_and_windows_that_leave_nothing_to_fit_are_refused():
    model, texts = _measured("mistral_window"), _texts(2)
    with pytest.raises(UserError, match="every softmax layer has a window of at most 4 tokens"):
        gradients_by_distance(model, texts, 20, PARENTS, np.random.default_rng(0))
    with pytest.raises(UserError, match="texts of 40 tokens are too short"):
        gradients_by_distance(model, texts, 40, PARENTS, np.random.default_rng(0))


def test_prompts_without_needles_have_no_map():
    model, tokens = _measured("llama"), _texts(1).taken[0].tokens
    with pytest.raises(UserError, match="the prompt has no needle"):
        attention_maps(model, Prompt(tokens, None), [(0, 0)], 8, "pre", PARENTS)
    for needle in ((5, 5), (30, TOKENS + 1), (-1, 3)):
        with pytest.raises(UserError, match="is outside of its prompt of 40 tokens"):
            Prompt(tokens, needle)
    record = head_distances(model, [Prompt(tokens, None)], "pre", PARENTS).record
    assert {each.needle_mass for each in record.heads} == {None}


def test_texts_that_are_trained_at_their_beginning_only_reach_no_further():
    model, (text,) = _measured("llama"), _texts(1).taken
    trained = np.arange(TOKENS) == 12  # predicted at token 11: distances up to 11
    texts = Texts("early", TOKENS, (Text(text.tokens, trained),), 0, 0, "early")
    with pytest.raises(UserError, match="the gradient at a distance of 12 tokens is zero"):
        gradients_by_distance(model, texts, 20, PARENTS, np.random.default_rng(0))
    record = gradients_by_distance(model, texts, 11, PARENTS, np.random.default_rng(0))
    assert (record.n, record.fit.rate.interval, record.curve.low) == (1, None, ())


def test_with_equal_targets_random_weights_reach_equally_far_in_all_texts():
    """Late targets alone lengthen the reach; a model that has learned nothing shows only that."""
    model, rng = _measured("llama"), np.random.default_rng(1)
    late = np.arange(TOKENS) >= 28
    chains = [Text(rng.integers(0, 8, TOKENS).astype(np.int32), late) for _ in range(8)]
    every = np.arange(TOKENS) > 0
    prose = [Text(rng.integers(0, 95, TOKENS).astype(np.int32), every) for _ in range(9)]
    first = Texts("chains", TOKENS, tuple(chains), 0, 0, "chains")
    own = Texts("prose", TOKENS, tuple(prose), 0, 0, "prose")
    equal = with_targets_of(own, first)
    assert (equal.source, equal.targets_of, len(equal.taken)) == ("prose", "chains", 9)
    assert all((text.trained == late).all() for text in equal.taken)

    def mean_half_reach(texts):
        record = gradients_by_distance(model, texts, 20, PARENTS, np.random.default_rng(0))
        assert record.targets_of == texts.targets_of
        return np.mean(record.text_half_reach)

    chains_reach = mean_half_reach(first)
    assert mean_half_reach(own) < 0.8 * chains_reach
    assert mean_half_reach(equal) == pytest.approx(chains_reach, rel=0.1)
