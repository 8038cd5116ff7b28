"""The architecture table where transformers cannot build the model, and where users err."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import HeadRows, LayerKind, Role
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.families import FAMILIES, REFUSED
from amnesia_bench.weights.family import Family
from amnesia_bench.weights.names import by_place

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

FULL, SLIDING, LINEAR = LayerKind.FULL, LayerKind.SLIDING, LayerKind.LINEAR


def _projections(prefix: str, hidden: int, query: int, kv: int, *, bias: bool = False) -> Shapes:
    """q, k, v, o of one layer; query and kv in rows."""
    shapes: Shapes = {}
    for name, rows in (("q_proj", query), ("k_proj", kv), ("v_proj", kv)):
        shapes[f"{prefix}{name}.weight"] = (rows, hidden)
        if bias:
            shapes[f"{prefix}{name}.bias"] = (rows,)
    return shapes | {f"{prefix}o_proj.weight": (hidden, query)}


# -- HypeNet and Jet-Nemotron: layers of the released models, at small widths -----------------

HYPENET = {
    "2B": (28, (2, 3, 6, 8, 9, 21, 25)),
    "5B": (36, (0, 1, 7, 14, 15, 22, 24, 31, 33)),
    "9B": (36, (1, 2, 4, 6, 7, 10, 24, 33, 34)),
}


def _hypenet(layers: int, softmax: tuple[int, ...], **changes: object) -> tuple[Config, Shapes]:
    marks = ["attn" if i in softmax else "lightning-attn" for i in range(layers)]
    config: Config = {
        "model_type": "hypenet",
        "num_hidden_layers": layers,
        "mixer_types": marks,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "attn_use_rope": False,
        "attn_use_output_gate": True,
        "attn_logits_scaling": None,
        "rope_theta": 1000000,
    }
    shapes: Shapes = {"model.embed_tokens.weight": (257, 64), "model.norm.weight": (64,)}
    for layer in range(layers):
        block = f"model.layers.{layer}.self_attn."
        linear = layer not in softmax
        shapes |= _projections(block, 64, 64, 64 if linear else 32)
        shapes |= {f"{block}q_norm.weight": (16,), f"{block}k_norm.weight": (16,)}
        shapes[f"{block}z_proj.weight" if linear else f"{block}o_gate.weight"] = (64, 64)
        if linear:
            shapes[f"{block}o_norm.weight"] = (64,)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (64, 160)
    return config | changes, shapes


@pytest.mark.parametrize("size", HYPENET)
def test_hypenet_layers(size: str) -> None:
    mapped = attention_map(*_hypenet(*HYPENET[size]))
    assert mapped.layers(FULL) == HYPENET[size][1]
    assert len(mapped.layers(LINEAR)) == HYPENET[size][0] - len(HYPENET[size][1])
    assert {tensor.layer for tensor in mapped.tensors} == set(HYPENET[size][1])
    keys = [tensor for tensor in mapped.tensors if tensor.role is Role.K]
    assert all(t.rows == HeadRows(start=0, stride=16, head_dim=16, num_heads=2) for t in keys)
    assert {t.role for t in mapped.tensors} == set(Role) - {Role.SINK}
    assert dict(mapped.routing)["rope"] is None


def test_hypenet_underscored_marks_and_no_gate() -> None:
    config, shapes = _hypenet(4, (1, 3), attn_use_output_gate=False)
    config["mixer_types"] = ["lightning_attn", "attn", "lightning_attn", "attn"]
    shapes = {name: shape for name, shape in shapes.items() if "o_gate" not in name}
    mapped = attention_map(config, shapes)
    assert mapped.layers(FULL) == (1, 3)
    assert Role.GATE not in {tensor.role for tensor in mapped.tensors}


def test_the_logit_scale_of_hypenet_is_routing() -> None:
    plain = attention_map(*_hypenet(4, (1, 3)))
    scaled = attention_map(*_hypenet(4, (1, 3), attn_logits_scaling=500))
    assert plain.tensors == scaled.tensors
    assert plain.routing != scaled.routing


def _jet() -> tuple[Config, Shapes]:
    kinds = {14: "attn", 19: "attn", 20: "swa", 21: "swa"}
    config: Config = {
        "model_type": "jet_nemotron",
        "num_hidden_layers": 28,
        "layer_types": [kinds.get(i, "jet") for i in range(28)],
        "hidden_size": 48,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "max_position_embeddings": 32768,
        "efficient_attention_config": {"swa": {"window_size": 1152}},
    }
    shapes: Shapes = {}
    for layer in range(28):
        block = f"model.layers.{layer}.self_attn."
        softmax = layer in kinds
        shapes |= _projections(block, 48, 48, 8 if softmax else 48, bias=softmax)
        if not softmax:
            shapes |= {f"{block}A_log": (12,), f"{block}g_proj.weight": (48, 48)}
    return config, shapes


def test_jet_nemotron_layers_and_biases() -> None:
    mapped = attention_map(*_jet())
    assert mapped.layers(FULL) == (14, 19)
    assert mapped.layers(SLIDING) == (20, 21)
    names = [t.name for t in mapped.tensors if t.layer == 14 and t.role in (Role.Q, Role.K)]
    block = "model.layers.14.self_attn."
    parts = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
    assert names == [block + part for part in parts]
    assert dict(mapped.routing)["sliding_window"] == 1152


# -- flash-linear-attention -----------------------------------------------------------------


def _fla(model_type: str, **attn: object) -> tuple[Config, Shapes]:
    samba = model_type == "samba"
    block = "backbone.layers.{}.mixer." if samba else "model.layers.{}.attn."
    config: Config = {
        "model_type": model_type,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_heads": 2,
        "head_dim": 99,
        "attn": {"layers": [1, 3], "num_heads": 4, "num_kv_heads": 2, "rope_theta": 1e4} | attn,
    }
    bias = bool(config["attn"].get("qkv_bias"))
    shapes: Shapes = {}
    for layer in range(4):
        if layer in (1, 3):
            shapes |= _projections(block.format(layer), 32, 32, 16, bias=bias)
        else:
            shapes |= _projections(block.format(layer), 32, 32, 32)
            shapes[block.format(layer) + "g_proj.weight"] = (32, 32)
    return config, shapes


@pytest.mark.parametrize(
    "model_type", ["gated_deltanet", "gla", "delta_net", "kda", "rwkv7", "samba"]
)
def test_fla_hybrids(model_type: str) -> None:
    mapped = attention_map(*_fla(model_type))
    assert mapped.layers(FULL) == (1, 3)
    assert (mapped.num_query_heads, mapped.num_kv_heads, mapped.head_dim) == (4, 2, 8)
    assert len(mapped.tensors) == 2 * 4
    windowed = attention_map(*_fla(model_type, window_size=64, qkv_bias=True))
    assert windowed.layers(SLIDING) == (1, 3)
    assert len(windowed.tensors) == 2 * 7
    assert dict(windowed.routing)["sliding_window"] == 64
    other_base = attention_map(*_fla(model_type, rope_theta=5e5))
    assert dict(other_base.routing)["rope"] != dict(mapped.routing)["rope"]


def test_fla_without_softmax_layers_or_with_several_kinds_is_refused() -> None:
    config, shapes = _fla("gla")
    with pytest.raises(UserError, match="no softmax layer"):
        attention_map(config | {"attn": None}, shapes)
    with pytest.raises(UserError, match="list is not supported"):
        attention_map(config | {"attn": [config["attn"]]}, shapes)


# -- published spellings of configs transformers 5 rewrites ------------------------------------

LLAMA_LIKE: Config = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
WINDOWS = {
    "mistral v0.1": ({"model_type": "mistral", "sliding_window": 16}, {0, 1, 2, 3}),
    "mistral v0.3": ({"model_type": "mistral", "sliding_window": None}, set()),
    "mistral, a window over everything": (
        {"model_type": "mistral", "sliding_window": 64, "max_position_embeddings": 64},
        set(),
    ),
    "qwen2 off": (
        {"model_type": "qwen2", "sliding_window": 16, "max_window_layers": 2},
        set(),
    ),
    "qwen2 on": (
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 2,
        },
        {2, 3},
    ),
    "qwen2_moe on": (
        {
            "model_type": "qwen2_moe",
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 3,
        },
        {0, 2},
    ),
    "qwen3_moe off": ({"model_type": "qwen3_moe", "sliding_window": 16}, set()),
    "qwen3_moe on": (
        {"model_type": "qwen3_moe", "use_sliding_window": True, "sliding_window": 16},
        {0, 1, 2, 3},
    ),
    "phi3-like zero": ({"model_type": "mixtral", "sliding_window": 0}, set()),
    "qwen3 on, from the first layer": (
        {
            "model_type": "qwen3",
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 0,
        },
        {0, 1, 2, 3},
    ),
    "gemma3 pattern": ({"model_type": "gemma3_text", "sliding_window_pattern": 2}, {0, 2}),
    "gemma3 default": ({"model_type": "gemma3_text"}, {0, 1, 2, 3}),
    "exaone4": ({"model_type": "exaone4", "sliding_window": 16}, {0, 1, 2}),
    "exaone4 without a window": ({"model_type": "exaone4", "sliding_window": None}, set()),
    "gemma3 layer_types": (
        {
            "model_type": "gemma3_text",
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
        {1, 3},
    ),
}


def _plain_shapes(model_type: str, head_dim: int) -> Shapes:
    shapes: Shapes = {}
    for layer in range(4):
        block = f"model.layers.{layer}.self_attn."
        shapes |= _projections(
            block, 32, 4 * head_dim, 2 * head_dim, bias=model_type.startswith("qwen2")
        ) | {f"{block}o_proj.weight": (32, 4 * head_dim)}
        if model_type in ("qwen3", "qwen3_moe", "gemma3_text", "exaone4"):
            shapes |= {f"{block}q_norm.weight": (head_dim,), f"{block}k_norm.weight": (head_dim,)}
    return shapes


@pytest.mark.parametrize("case", WINDOWS)
def test_windows(case: str) -> None:
    changes, sliding = WINDOWS[case]
    config = LLAMA_LIKE | {"num_hidden_layers": 4, "head_dim": 8} | changes
    mapped = attention_map(config, _plain_shapes(config["model_type"], 8))
    assert set(mapped.layers(SLIDING)) == sliding
    assert set(mapped.layers(FULL)) == {0, 1, 2, 3} - sliding
    assert ("sliding_window" in dict(mapped.routing)) is bool(sliding)


# Raw keys as released models spell them, small; each must read as transformers reads it.
RAW: dict[str, Config] = {
    "qwen3_next": {
        "model_type": "qwen3_next",
        "full_attention_interval": 2,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_scaling": None,
        "head_dim": 8,
    },
    "lfm2": {"model_type": "lfm2", "full_attn_idxs": [2, 3], "rope_theta": 1000000.0},
    "jamba": {"model_type": "jamba", "attn_layer_period": 4, "attn_layer_offset": 2},
    "bamba": {"model_type": "bamba", "attn_layer_indices": [1], "mamba_n_heads": 8},
    "nemotron_h": {"model_type": "nemotron_h", "hybrid_override_pattern": "M*-*", "head_dim": 8},
    "granitemoehybrid": {
        "model_type": "granitemoehybrid",
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "mamba_n_heads": 8,
    },
    "zamba2": {
        "model_type": "zamba2",
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_mem_blocks": 2,
    },
    "olmo_hybrid": {"model_type": "olmo_hybrid"},
    "recurrent_gemma": {
        "model_type": "recurrent_gemma",
        "block_types": ["recurrent", "attention"],
        "attention_window_size": 16,
    },
    "gemma3_text": {"model_type": "gemma3_text", "sliding_window_pattern": 2, "head_dim": 8},
    "gemma2": {"model_type": "gemma2"},
    "gemma3n_text": {
        "model_type": "gemma3n_text",
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 0,
    },
    "gemma4_text": {"model_type": "gemma4_text", "num_hidden_layers": 8, "global_head_dim": 16},
    "gpt_oss": {"model_type": "gpt_oss"},
    "olmo3": {"model_type": "olmo3"},
    "smollm3": {"model_type": "smollm3"},
    "smollm3 marked": {
        "model_type": "smollm3",
        "use_sliding_window": True,
        "sliding_window": 8,
        "no_rope_layers": [1, 0, 0, 1],
    },
    "cohere2": {"model_type": "cohere2", "sliding_window_pattern": 2},
    "exaone4": {"model_type": "exaone4", "sliding_window": 8},
    "ministral": {"model_type": "ministral"},
    "ministral full": {"model_type": "ministral", "sliding_window": None},
    "cwm": {"model_type": "cwm", "num_hidden_layers": 6},
    "dots1": {"model_type": "dots1", "max_window_layers": 1},
    "dots1 full": {"model_type": "dots1", "max_window_layers": 1, "sliding_window": None},
    "afmoe": {"model_type": "afmoe", "global_attn_every_n_layers": 3},
    "llama4_text": {"model_type": "llama4_text"},
    "llama4 marked": {"model_type": "llama4_text", "no_rope_layers": [0, 1, 1, 0]},
    "qwen2_5_vl_text": {
        "model_type": "qwen2_5_vl_text",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 3,
    },
    "qwen2": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 2,
    },
}
OF_TYPE = {
    "full_attention": FULL,
    "hybrid": FULL,
    "sliding_attention": SLIDING,
    "chunked_attention": SLIDING,
    "linear_attention": LINEAR,
    "conv": LINEAR,
    "mlp": LayerKind.NONE,
    "moe": LayerKind.NONE,
}


@pytest.mark.parametrize("name", RAW)
def test_layer_kinds_read_as_transformers_reads_them(name: str) -> None:
    raw = LLAMA_LIKE | {"num_hidden_layers": 4, "vocab_size": 64} | RAW[name]
    theirs = AutoConfig.for_model(**json.loads(json.dumps(raw))).layer_types
    family = next(family for family in FAMILIES if raw["model_type"] in family.model_types)
    ours = family.layer_kinds({**family.defaults, **raw})
    assert list(ours) == [OF_TYPE[kind] for kind in theirs]


# What __post_init__ takes from leftover arguments, and is therefore no field of the class.
NO_FIELDS = {
    "rope_theta",
    "rope_local_base_freq",
    "partial_rotary_factor",
    "full_attention_interval",
    "sliding_window_pattern",
}


@pytest.mark.parametrize(
    ("family", "model_type"),
    [
        pytest.param(family, model_type, id=model_type)
        for family in FAMILIES
        for model_type in family.model_types
        if model_type in CONFIG_MAPPING
    ],
)
def test_defaults_are_those_of_the_config_class(family: Family, model_type: str) -> None:
    theirs = AutoConfig.for_model(model_type).get_text_config()
    for key, value in {**family.routing, **family.defaults}.items():
        if key not in NO_FIELDS:
            found = theirs.to_dict()[key]  # gemma4's forbids to ask for its head_dim
            assert list(found) == list(value) if isinstance(value, tuple) else found == value, key
    assert family.rotates(theirs.to_dict()) is (_theirs_rope(theirs) is not None)
    if (rope := _theirs_rope(theirs)) is not None:
        nested: Any = family.defaults.get("rope_parameters", {})
        ours = nested.get("full_attention", family.defaults)
        assert rope["rope_theta"] == ours.get("rope_theta", 10_000.0)
        factor = rope.get("partial_rotary_factor", 1.0)
        assert factor == ours.get("partial_rotary_factor", 1.0)


def _theirs_rope(config: Any) -> dict[str, Any] | None:
    by_flag = {
        "granitemoehybrid": config.to_dict().get("position_embedding_type") == "rope",
        "zamba2": config.to_dict().get("use_mem_rope", False),
    }
    rope = (
        getattr(config, "rope_parameters", None) if by_flag.get(config.model_type, True) else None
    )
    return rope["full_attention"] if rope and "full_attention" in rope else rope


@pytest.mark.parametrize("model_type", ["minimax_text_01", "minimax_m1"])
def test_minimax_as_its_own_code_spells_it(model_type: str) -> None:
    config: Config = LLAMA_LIKE | {
        "model_type": model_type,
        "num_hidden_layers": 4,
        "attn_type_list": [0, 0, 0, 1],
        "head_dim": 16,
        "rotary_dim": 8,
        "rope_theta": 10000000,
    }
    shapes = _projections("model.layers.3.self_attn.", 32, 64, 32)
    for layer in range(3):
        shapes[f"model.layers.{layer}.self_attn.qkv_proj.weight"] = (192, 32)
    mapped = attention_map(config, shapes)
    assert mapped.layers(FULL) == (3,)
    assert dict(dict(mapped.routing)["rope"])["partial_rotary_factor"] == 0.5


# -- wrappers for images and sound, as released ------------------------------------------------


def _decoder(root: str, layers: int = 2, parent: str = "self_attn", bias: bool = False) -> Shapes:
    shapes: Shapes = {}
    for layer in range(layers):
        block = f"{root}layers.{layer}.{parent}."
        shapes |= _projections(block, 32, 32, 16, bias=bias)
    return shapes


TWO_LAYERS: Config = LLAMA_LIKE | {"num_hidden_layers": 2}
WRAPPERS: dict[str, tuple[Config, Shapes]] = {
    "LLaVA": (
        {"model_type": "llava", "text_config": {"model_type": "llama", **TWO_LAYERS}},
        _decoder("language_model.model."),
    ),
    "SmolVLM": (
        {"model_type": "smolvlm", "text_config": {"model_type": "llama", **TWO_LAYERS}},
        _decoder("model.text_model."),
    ),
    "Qwen2.5-VL before text_config": (
        {"model_type": "qwen2_5_vl", "vision_config": {"hidden_size": 9}, **TWO_LAYERS},
        _decoder("model.", bias=True),
    ),
    "Qwen2.5-Omni": (
        {
            "model_type": "qwen2_5_omni",
            "thinker_config": {
                "model_type": "qwen2_5_omni_thinker",
                "text_config": {"model_type": "qwen2_5_omni_text", **TWO_LAYERS},
            },
            "talker_config": {"hidden_size": 9},
        },
        _decoder("thinker.model.", bias=True) | _decoder("talker.model.", bias=True),
    ),
    "InternVL's own code": (
        {"model_type": "internvl_chat", "llm_config": {"model_type": "qwen2", **TWO_LAYERS}},
        _decoder("language_model.model.", bias=True),
    ),
    "Nemotron Omni": (
        {
            "model_type": "NemotronH_Nano_Omni_Reasoning_V3",
            "llm_config": {**TWO_LAYERS, "hybrid_override_pattern": "**", "head_dim": 8},
        },
        _decoder("language_model.backbone.", parent="mixer"),
    ),
    "Llama 4": (
        {
            "model_type": "llama4",
            "text_config": {
                "model_type": "llama4_text",
                "head_dim": 8,
                "no_rope_layers": [0, 0],
                **TWO_LAYERS,
            },
        },
        _decoder("language_model.model."),
    ),
    "mllama": (
        {
            "model_type": "mllama",
            "text_config": {
                "model_type": "mllama_text_model",
                **LLAMA_LIKE,
                "num_hidden_layers": 3,
                "cross_attention_layers": [2],
            },
        },
        _decoder("language_model.model.")
        | {"language_model.model.layers.2.cross_attn.q_proj.weight": (32, 32)},
    ),
    "a decoder without its head": ({"model_type": "llama", **TWO_LAYERS}, _decoder("")),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_decoder_inside_a_wrapper_is_found(name: str) -> None:
    mapped = attention_map(*WRAPPERS[name])
    assert mapped.layers(FULL) == (0, 1)
    assert (mapped.num_query_heads, mapped.num_kv_heads, mapped.head_dim) == (4, 2, 8)
    assert {tensor.layer for tensor in mapped.tensors} == {0, 1}
    assert not [tensor for tensor in mapped.tensors if tensor.name.startswith("talker")]


def test_sizes_that_a_wrapper_leaves_to_the_config_class() -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}
    block = "language_model.model.layers.{}.self_attn."
    shapes: Shapes = {}
    for layer in range(32):
        shapes |= _projections(block.format(layer), 4096, 4096, 4096)
    mapped = attention_map(config, shapes)
    assert (len(mapped.layers(FULL)), mapped.num_query_heads, mapped.head_dim) == (32, 32, 128)


def test_a_released_gemma4_and_one_saved_by_transformers_route_alike() -> None:
    sizes = LLAMA_LIKE | {"model_type": "gemma4_text", "num_hidden_layers": 2, "head_dim": 8}
    sizes["layer_types"] = ["sliding_attention", "full_attention"]
    shapes = {
        **_projections("model.layers.0.self_attn.", 32, 32, 16),
        **_projections("model.layers.1.self_attn.", 32, 64, 32),
        **{f"model.layers.0.self_attn.{x}_norm.weight": (8,) for x in "qk"},
        **{f"model.layers.1.self_attn.{x}_norm.weight": (16,) for x in "qk"},
    }
    released = attention_map({**sizes, "global_head_dim": 16}, shapes)
    saved = attention_map({**sizes, "per_layer_config": {"01": {"head_dim": 16}}}, shapes)
    assert released == saved
    assert dict(released.routing)["head_dims_of_layers"] == ((1, 16),)
    sizes_of_q = {t.layer: t.rows.head_dim for t in released.tensors if t.role is Role.Q and t.rows}
    assert sizes_of_q == {0: 8, 1: 16}


# -- refusals and mistakes -------------------------------------------------------------------


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_mla_and_indexers_are_refused_with_the_reason(model_type: str) -> None:
    reason = "trained indexer" if "qwen4" in model_type else "latent attention"
    with pytest.raises(UserError, match=reason):
        attention_map({"model_type": model_type}, {})
    with pytest.raises(UserError, match=reason):
        attention_map({"model_type": "some_vl", "text_config": {"model_type": model_type}}, {})


REFUSED_CONFIGS = {
    "gemma4 whose keys are its values": (
        {"model_type": "gemma4_text", "attention_k_eq_v": True},
        "use W_K as W_V too",
    ),
    "stablelm with a norm module per head": (
        {"model_type": "stablelm", "qk_layernorm": True},
        "norms are separate modules for each head",
    ),
}


@pytest.mark.parametrize("case", REFUSED_CONFIGS)
def test_a_config_whose_projections_cannot_be_restored_is_refused(case: str) -> None:
    config, reason = REFUSED_CONFIGS[case]
    with pytest.raises(UserError, match=reason):
        attention_map(LLAMA_LIKE | {"num_hidden_layers": 2} | config, {})


def test_no_model_type_belongs_to_two_rows() -> None:
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))
    assert not set(types) & set(REFUSED)


def test_an_unknown_architecture_names_its_neighbours() -> None:
    with pytest.raises(UserError, match="unknown model_type 'qwen3_nxt'") as caught:
        attention_map({"model_type": "qwen3_nxt"}, {})
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("nearest known: qwen3_next")
    assert "families.py" in caught.value.hint
    with pytest.raises(UserError, match="unknown model_type None"):
        attention_map({}, {})


MISTAKES = {
    "missing": (
        lambda config, shapes: shapes.pop("model.layers.3.self_attn.k_proj.weight"),
        r"layers.3.self_attn.k_proj.weight is missing \(expected shape \[32, 64\]\)",
    ),
    "extra": (
        lambda config, shapes: shapes.update({"model.layers.1.self_attn.q_proj.scales": (4,)}),
        r"unexpected tensor 'model.layers.1.self_attn.q_proj.scales' of shape \[4\]",
    ),
    "an adapter that is not merged": (
        lambda config, shapes: shapes.update(
            {
                "model.layers.1.self_attn.q_proj.base_layer.weight": shapes.pop(
                    "model.layers.1.self_attn.q_proj.weight"
                )
            }
        ),
        r"q_proj.base_layer.weight belongs to an adapter that is not merged",
    ),
    "empty tensors of ZeRO-3": (
        lambda config, shapes: shapes.update({name: (0,) for name in shapes}),
        r"layers.1.self_attn.* is empty",
    ),
    "head count": (
        lambda config, shapes: config.update(num_key_value_heads=4),
        r"layers.1.self_attn.k_proj.weight should have shape \[64, 64\], found \[32, 64\]",
    ),
    "uneven groups": (
        lambda config, shapes: config.update(num_key_value_heads=3),
        "4 query heads cannot share 3",
    ),
    "layers moved": (
        lambda config, shapes: config.update(mixer_types=["lightning-attn"] * 3 + ["attn"]),
        "layer 1 is not a softmax layer",
    ),
    "too few marks": (
        lambda config, shapes: config.update(mixer_types=["attn"]),
        "lists 1 layers, but num_hidden_layers is 4",
    ),
    "unknown mark": (
        lambda config, shapes: config.update(mixer_types=["attn", "gdn", "attn", "kda"]),
        "unknown layer kinds gdn, kda",
    ),
    "no marks": (
        lambda config, shapes: config.pop("mixer_types"),
        "mixer_types must name the softmax layers",
    ),
    "marks are numbers": (
        lambda config, shapes: config.update(mixer_types=[0, 1, 0, 1]),
        "should be a list of strings",
    ),
    "hidden size missing": (
        lambda config, shapes: config.pop("hidden_size"),
        "hidden_size should be a positive whole number, found None",
    ),
    "another path": (
        lambda config, shapes: [
            shapes.setdefault(name.replace("layers.", "blocks."), shapes.pop(name))
            for name in list(shapes)
        ],
        "found under no name",
    ),
    "q and k in one": (
        lambda config, shapes: (
            shapes.update(
                {
                    "model.layers.3.self_attn.qkv_proj.weight": (128, 64),
                    "model.layers.3.self_attn.q_proj.weight": (1, 1),
                }
            )
            or shapes.pop("model.layers.3.self_attn.q_proj.weight")
        ),
        r"layers.3.self_attn.q_proj.weight is missing.*found '.*qkv_proj.weight' instead",
    ),
    "one tensor under two names": (
        lambda config, shapes: shapes.update({"module.model.norm.weight": (64,)}),
        "two copies of the same tensor",
    ),
    "a count of layers that is damaged": (
        lambda config, shapes: config.update(num_hidden_layers=10**12),
        "num_hidden_layers is 1000000000000, more than",
    ),
    "no width of heads": (
        lambda config, shapes: config.update(head_dim=None, hidden_size=1),
        "4 query heads do not fit",
    ),
    "stored twice": (
        lambda config, shapes: shapes.update(
            {name.removeprefix("model."): shape for name, shape in list(shapes.items())}
        ),
        "should be stored once; found under '', 'model.'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_checkpoint_that_does_not_fit_its_config(mistake: str) -> None:
    config, shapes = _hypenet(4, (1, 3))
    change, message = MISTAKES[mistake]
    change(config, shapes)
    with pytest.raises(UserError, match=message):
        attention_map(config, shapes)


def test_buffers_of_old_checkpoints_are_no_extra_tensors() -> None:
    config = {"model_type": "llama", "num_hidden_layers": 4} | LLAMA_LIKE
    shapes = _plain_shapes("llama", 8)
    shapes["model.layers.0.self_attn.rotary_emb.inv_freq"] = (4,)
    assert len(attention_map(config, shapes).tensors) == 16


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "DDP of a compiled model": lambda name: f"module._orig_mod.{name}",
    "compiled DDP": lambda name: f"_orig_mod.module.{name}",
    "PEFT": lambda name: f"base_model.model.{name}",
    "PEFT under DDP": lambda name: f"module.base_model.model.{name}",
    "each layer compiled": lambda name: name.replace(".self_attn.", "._orig_mod.self_attn."),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}".replace(
        ".self_attn.", "._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn."
    ),
    "another root": lambda name: name.replace("model.", "some.decoder.", 1),
    "a bare decoder": lambda name: name.removeprefix("model."),
    "a wrapper for images": lambda name: name.replace("model.", "model.language_model.", 1),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_the_map_does_not_hang_on_what_stands_before_the_layers(wrapped: str) -> None:
    config, shapes = _hypenet(4, (1, 3))
    plain = attention_map(config, shapes)
    names = {name: WRAPPED[wrapped](name) for name in shapes}
    renamed = attention_map(config, {names[name]: shape for name, shape in shapes.items()})
    assert [tensor.name for tensor in renamed.tensors] == [names[t.name] for t in plain.tensors]
    assert [(t.layer, t.role, t.rows) for t in renamed.tensors] == [
        (t.layer, t.role, t.rows) for t in plain.tensors
    ]
    places = by_place(names.values(), renamed.root)
    assert places.keys() == by_place(shapes, plain.root).keys()
    assert all(names[by_place(shapes, plain.root)[place]] == places[place] for place in places)


def test_of_several_decoders_the_one_with_all_softmax_layers_is_the_model() -> None:
    config: Config = {"model_type": "llama", "num_hidden_layers": 4} | LLAMA_LIKE
    shapes = _plain_shapes("llama", 8)
    plain = attention_map(config, shapes)
    predictor = {
        name.replace("model.", "mtp."): s for name, s in shapes.items() if ".layers.0." in name
    }
    tower = {name.replace("model.", "vision.encoder."): (4, 4) for name in shapes}
    assert attention_map(config, shapes | predictor | tower) == plain


def test_attention_outside_the_decoder_is_not_looked_at() -> None:
    config, shapes = _hypenet(4, (1, 3))
    plain = attention_map(config, shapes)
    shapes["mtp.layers.0.self_attn.q_proj.weight"] = (1, 1)
    shapes["model.visual.blocks.1.attn.qkv.weight"] = (1, 1)
    assert attention_map(config, shapes) == plain


def test_a_shared_block_stored_twice_is_an_error() -> None:
    config: Config = LLAMA_LIKE | {
        "model_type": "zamba2",
        "num_key_value_heads": 4,
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "num_mem_blocks": 1,
    }
    block = "model.layers.{}.shared_transformer.self_attn."

    def shapes(layer: int) -> Shapes:
        names = _projections(block.format(layer), 64, 64, 64)
        return names | {block.format(layer) + "o_proj.weight": (32, 64)}

    mapped = attention_map(config, shapes(1))
    assert mapped.layers(FULL) == (1, 2)
    assert {tensor.layer for tensor in mapped.tensors} == {1}
    with pytest.raises(UserError, match="layer 2 is not a softmax layer of its own"):
        attention_map(config, shapes(1) | shapes(2))
