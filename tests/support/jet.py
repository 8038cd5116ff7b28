"""Small random Jet-Nemotrons of many shapes, as dicts with the keys of NVlabs' config.json."""

from __future__ import annotations

from typing import Any

import torch

from amnesia_bench.modeling import JetNemotronConfig, JetNemotronForCausalLM

JET_BLOCK: dict[str, Any] = {
    "conv_size": 4,
    "dconv_generator_reduction": 4,
    "dconv_implementation": "triton",
    "expand_v": 2.0,
    "head_dim": 8,
    "mode": "chunk",
    "norm_eps": "1e-5",
    "num_heads": 3,
}
JET_PICO: dict[str, Any] = {
    "model_type": "jet_nemotron",
    "attention_dropout": 0.0,
    "efficient_attention_config": {"jet": JET_BLOCK, "swa": {"window_size": 9}},
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.3,
    "intermediate_size": 40,
    "layer_types": ["jet", "attn", "swa", "jet"],
    "max_position_embeddings": 16384,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "vocab_size": 97,
}


def _shape(jet: dict[str, Any] | None = None, window: int = 9, **changes: Any) -> dict[str, Any]:
    blocks = {"jet": JET_BLOCK | (jet or {}), "swa": {"window_size": window}}
    shape = JET_PICO | {"efficient_attention_config": blocks} | changes
    return shape | {"num_hidden_layers": len(shape["layer_types"])}


JET_SHAPES: dict[str, dict[str, Any]] = {
    "base": JET_PICO,
    "jet_only": _shape(layer_types=["jet"] * 3),
    "softmax_only": _shape(layer_types=["attn"] * 2, efficient_attention_config=None),
    "sliding_first": _shape(layer_types=["swa", "jet", "swa", "attn"], window=70),
    "no_full_layer": _shape(layer_types=["jet", "swa", "jet"]),
    "published_expand": _shape({"head_dim": 24, "expand_v": 2.6666666667}, layer_types=["jet"] * 2),
    "narrow_values": _shape({"expand_v": 0.5, "num_heads": 5}),
    "two_taps": _shape({"conv_size": 2}),
    "one_tap": _shape({"conv_size": 1, "dconv_generator_reduction": None}),
    "seven_taps": _shape({"conv_size": 7}, layer_types=["jet", "jet"]),
    "window_of_one": _shape(window=1),
    "single_key_head": _shape(num_key_value_heads=1, num_attention_heads=2),
    "wide_heads_untied": _shape(head_dim=12, tie_word_embeddings=False),
}


def jet_model(shape: str | dict[str, Any] = "base", seed: int = 0) -> JetNemotronForCausalLM:
    """Build a random model whose weights are large enough for every path to matter."""
    torch.manual_seed(seed)
    values = JET_SHAPES[shape] if isinstance(shape, str) else shape
    model = JetNemotronForCausalLM(JetNemotronConfig.from_dict(values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return model.eval()
