"""Jet-Nemotron token by token in float64, from its formulas; it shares no code with the model.

Shapes: T tokens, M hidden size, H heads, G key/value heads, D head dim, K/V key and value dims of a
JetBlock, C = H * V channels, W taps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

Weights = Mapping[str, Tensor]


def jet_logits(config: Mapping[str, Any], weights: Weights, ids: list[int]) -> Tensor:
    """Return the logits [T, E] of one sequence, for a config with NVlabs' keys."""
    parameters = {name: value.detach().double() for name, value in weights.items()}
    x = parameters["model.embed_tokens.weight"][ids]
    eps = config["rms_norm_eps"]
    for layer, kind in enumerate(config["layer_types"]):
        at = f"model.layers.{layer}."
        own = {name.removeprefix(at): p for name, p in parameters.items() if name.startswith(at)}
        hidden = _norm(x, own["input_layernorm.weight"], eps)
        x = x + (_jet if kind == "jet" else _softmax)(config, own, hidden, kind)
        hidden = _norm(x, own["post_attention_layernorm.weight"], eps)
        gated = silu(hidden @ own["mlp.gate_proj.weight"].T) * (
            hidden @ own["mlp.up_proj.weight"].T
        )
        x = x + gated @ own["mlp.down_proj.weight"].T
    head = parameters.get("lm_head.weight", parameters["model.embed_tokens.weight"])
    return _norm(x, parameters["model.norm.weight"], eps) @ head.T


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _softmax(config: Mapping[str, Any], own: Weights, x: Tensor, kind: str) -> Tensor:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    q, k, v = (
        x @ own[f"self_attn.{name}.weight"].T + own[f"self_attn.{name}.bias"]
        for name in ("q_proj", "k_proj", "v_proj")
    )
    frequency = 1.0 / config["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)
    window = math.inf
    if kind == "swa":
        window = config["efficient_attention_config"]["swa"]["window_size"]
    rows = []
    for t in range(len(x)):
        first = max(0, t - window + 1) if window < math.inf else 0
        mixed = []
        for head in range(heads):
            group = head // (heads // groups)
            query = _rotated(q[t, head * dim : (head + 1) * dim], t, frequency)
            keys = [
                _rotated(k[s, group * dim : (group + 1) * dim], s, frequency)
                for s in range(first, t + 1)
            ]
            share = (torch.stack(keys) @ query / dim**0.5).softmax(0)
            mixed.append(share @ v[first : t + 1, group * dim : (group + 1) * dim])
        rows.append(torch.cat(mixed))
    return torch.stack(rows) @ own["self_attn.o_proj.weight"].T


def _rotated(x: Tensor, position: int, frequency: Tensor) -> Tensor:
    # As in the model and in the authors' code, angles are float32.
    angle = torch.tensor(float(position)) * frequency
    cos, sin = angle.cos().double(), angle.sin().double()
    first, second = x.chunk(2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin])


def _jet(config: Mapping[str, Any], own: Weights, x: Tensor, _: str) -> Tensor:
    block = config["efficient_attention_config"]["jet"]
    heads, taps = block["num_heads"], block["conv_size"]

    def of(name: str) -> Tensor:
        return own[f"self_attn.{name}"]

    values, rows = x @ of("v_proj.weight").T, []
    state: Tensor | float = 0.0
    for t, token in enumerate(x):
        q, k = (
            _unit(silu(of(f"{name}.weight") @ token).view(heads, -1))
            for name in ("q_proj", "k_proj")
        )
        inner = silu(of("dynamic_conv1d.kernel_generator.w1.weight") @ token)
        kernel = of("dynamic_conv1d.kernel_generator.w2.weight") @ inner
        kernel = (kernel + of("dynamic_conv1d.kernel_generator.w2.bias")).view(-1, taps)
        sums = sum(
            kernel[:, tap] * values[t - taps + 1 + tap]
            for tap in range(taps)
            if t - taps + 1 + tap >= 0
        )
        v = silu(torch.as_tensor(sums)).view(heads, -1)
        rate = torch.sigmoid(of("b_proj.weight") @ token)
        step = softplus(of("a_proj.weight") @ token + of("dt_bias"))
        state = torch.exp(-of("A_log").exp() * step)[:, None, None] * state
        predicted = (k[:, None] @ state)[:, 0] if isinstance(state, Tensor) and t else 0.0
        correction = rate[:, None] * (v - predicted)
        state = state + k[:, :, None] * correction[:, None, :]
        read = (q[:, None] @ state)[:, 0] / k.shape[1] ** 0.5
        gate = silu(of("g_proj.weight") @ token).view(heads, -1)
        normal = _norm(read, of("o_norm.weight"), float(block["norm_eps"]))
        rows.append(of("o_proj.weight") @ (normal * gate).flatten())
    return torch.stack(rows)


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()
