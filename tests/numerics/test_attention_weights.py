"""Attention weights are those after the softmax, for softmax layers only."""

import pytest
import torch

from tests.numerics.conftest import random_ids


def _by_hand(model, ids, layer):
    """softmax(s_t d^-1/2 q k^T) from the hidden state before the layer."""
    config, weights = model.config, model.state_dict()
    hidden = model(ids, output_hidden_states=True).hidden_states[layer]
    block = model.model.layers[layer]
    x = block.input_layernorm(hidden)
    at = f"model.layers.{layer}.self_attn"
    q, k = (
        getattr(block.self_attn, f"{n}_norm")(
            (x @ weights[f"{at}.{n}_proj.weight"].T).unflatten(-1, (-1, config.head_dim))
        )
        for n in "qk"
    )
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    logits = torch.einsum("bthd,bshd->bhts", q, k) * config.head_dim**-0.5
    if (a := config.attn_logit_scale_a) is not None:
        t = torch.arange(ids.shape[1])
        logits = logits * ((t + a).log() / torch.tensor(a).log())[:, None]
    future = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
    return logits.masked_fill(future, float("-inf")).softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", ["base", "logit_scale"])
def test_weights_of_softmax_layers_and_none_of_linear_ones(make_model, shape, attention):
    model = make_model(shape)
    model.set_attn_implementation(attention)
    ids = random_ids(2, 40)
    out = model(ids, output_attentions=True)
    assert [w is None for w in out.attentions] == [True, False, False, True]
    for layer in (1, 2):
        weights = out.attentions[layer]
        assert weights.shape == (2, 4, 40, 40)
        torch.testing.assert_close(weights, _by_hand(model, ids, layer), rtol=0, atol=1e-5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 40), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.logits, model(ids).logits, rtol=0, atol=2e-4)
    assert model(ids).attentions is None


@torch.no_grad()
def test_weights_of_packed_rows_stay_inside_documents(make_model):
    ids = random_ids(1, 12)
    weights = make_model()(ids, cu_seqlens=[0, 5, 12], output_attentions=True).attentions[1]
    assert weights[..., 5:, :5].abs().max() == 0
    assert weights[..., :5, 5:].abs().max() == 0


def test_weights_come_with_generate(make_model):
    out = make_model().generate(
        random_ids(1, 10),
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    assert [step[1].shape for step in out.attentions] == [
        (1, 4, 10, 10),
        (1, 4, 1, 11),
        (1, 4, 1, 12),
    ]
    assert out.attentions[0][0] is None
