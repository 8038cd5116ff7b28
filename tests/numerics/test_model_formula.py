"""Every shape of the official format against a model written out in plain formulas."""

import math

import pytest
import torch

from amnesia_bench.modeling import alibi_log_decay
from tests.numerics.conftest import SHAPES, random_ids
from tests.numerics.reference import recurrence, rms_norm, rope


def _linear(weights, name, x):
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def _normed(weights, name, x, eps):
    return rms_norm(x, weights[f"{name}.weight"], eps) if f"{name}.weight" in weights else x


def _softmax_mixer(config, weights, at, x):
    heads = (*x.shape[:2], -1, config.head_dim)
    q, k, v = (_linear(weights, f"{at}.{n}_proj", x).view(heads) for n in "qkv")
    q = _normed(weights, f"{at}.q_norm", q, config.rms_norm_eps)
    k = _normed(weights, f"{at}.k_norm", k, config.rms_norm_eps)
    if config.attn_use_rope:
        theta = config.rope_parameters["rope_theta"]
        q, k = rope(q, theta), rope(k, theta)
    share = q.shape[2] // k.shape[2]
    output = torch.zeros_like(q)
    for t in range(x.shape[1]):
        scale = config.head_dim**-0.5
        if config.attn_logit_scale_a:
            scale *= math.log(t + config.attn_logit_scale_a) / math.log(config.attn_logit_scale_a)
        scale *= config.attn_logit_multiplier or 1
        for head in range(q.shape[2]):
            group = head // share
            logits = torch.einsum("bd,bsd->bs", q[:, t, head], k[:, : t + 1, group]) * scale
            output[:, t, head] = torch.einsum(
                "bs,bsd->bd", logits.softmax(-1), v[:, : t + 1, group]
            )
    output = output.flatten(2)
    if config.attn_use_output_gate:
        output = output * _linear(weights, f"{at}.o_gate", x).sigmoid()
    return _linear(weights, f"{at}.o_proj", output)


def lightning_mixer(config, weights, at, x):
    heads = (*x.shape[:2], -1, config.lightning_head_dim)
    q, k, v = (_linear(weights, f"{at}.{n}_proj", x).view(heads) for n in "qkv")
    q = _normed(weights, f"{at}.q_norm", q, config.rms_norm_eps)
    k = _normed(weights, f"{at}.k_norm", k, config.rms_norm_eps)
    if config.lightning_use_rope:
        theta = config.rope_parameters["rope_theta"]
        q, k = rope(q, theta), rope(k, theta)
    share = config.lightning_nh // config.lightning_nkv
    k, v = (torch.stack([y[:, :, h // share] for h in range(q.shape[2])], dim=2) for y in (k, v))
    scale = {"1/sqrt(d)": 0.5, "1/d": 1.0}[config.lightning_scale]
    decay = alibi_log_decay(config.lightning_nh).to(x.dtype)
    output, _ = recurrence(q, k, v, decay, config.lightning_head_dim**-scale)
    output = _normed(weights, f"{at}.o_norm", output.flatten(2), config.rms_norm_eps)
    if config.lightning_use_output_gate:
        output = output * _linear(weights, f"{at}.z_proj", x).sigmoid()
    return _linear(weights, f"{at}.o_proj", output)


def model_formula(model, ids):
    config, weights = model.config, model.state_dict()
    x = weights["model.embed_tokens.weight"][ids]
    for layer, mixer in enumerate(config.mixer_types):
        at = f"model.layers.{layer}"
        run = _softmax_mixer if mixer == "attn" else lightning_mixer
        normed = _normed(weights, f"{at}.input_layernorm", x, config.rms_norm_eps)
        x = x + run(config, weights, f"{at}.self_attn", normed)
        normed = _normed(weights, f"{at}.post_attention_layernorm", x, config.rms_norm_eps)
        gate = _linear(weights, f"{at}.mlp.gate_proj", normed)
        up = _linear(weights, f"{at}.mlp.up_proj", normed)
        x = x + _linear(weights, f"{at}.mlp.down_proj", gate * gate.sigmoid() * up)
    x = _normed(weights, "model.norm", x, config.rms_norm_eps)
    return x @ weights["lm_head.weight"].T


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_the_formula_in_float64(make_model, shape):
    model = make_model(shape).double()
    ids = random_ids(2, 75)
    # RoPE angles are float32 on purpose: that is what bounds the agreement.
    torch.testing.assert_close(model(ids).logits, model_formula(model, ids), rtol=0, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_runs_token_by_token_and_generates(make_model, shape):
    model = make_model(shape).double()
    ids = random_ids(2, 40)
    full = model(ids).logits
    cache, parts = None, []
    for start, stop in [(0, 20), *((t, t + 1) for t in range(20, 40))]:
        out = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    assert cache.get_seq_length() == 40
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=1e-10)
    cached = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(
        cached, model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=False)
    )
