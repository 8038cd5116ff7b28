"""Rows of the architecture table for models whose layers are all softmax layers of one kind.

The kind may be sliding-window attention. Models whose softmax layers are not all alike are in
mixed_families.py.
"""

from __future__ import annotations

from amnesia_bench.records.roles import Role
from amnesia_bench.weights.family import (
    Family,
    Form,
    Module,
    always,
    flag,
    flat_norms,
    never,
    norms_of_heads,
    output_projection,
    separate,
    shared_norms,
)
from amnesia_bench.weights.layer_kinds import (
    all_full,
    one_window,
    one_window_if_used,
)
from amnesia_bench.weights.row_layouts import (
    fused_key,
    fused_query,
    fused_value,
    interleaved_key,
    interleaved_query,
    interleaved_value,
)

ATTENTION_BIAS = flag("attention_bias")
USE_BIAS = flag("use_bias")
QK_LAYERNORM = flag("qk_layernorm")
# The text_config of a LLaVA-like wrapper omits values that equal the defaults of its config class.
SIZES_OF_7B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}

SOFTMAX_FAMILIES = (
    Family(
        name="llama",
        model_types=("llama",),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS),
        defaults=SIZES_OF_7B,
    ),
    Family(
        name="arcee",
        model_types=("arcee", "iquestcoder", "jais2"),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS),
    ),
    Family(
        name="mistral",
        model_types=("mistral",),
        # MistralModel ignores layer_types and uses one window in all layers (null since v0.3).
        layer_kinds=one_window,
        modules=separate(),
        defaults={**SIZES_OF_7B, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Family(
        name="mixtral",
        model_types=("mixtral",),
        layer_kinds=one_window,
        modules=separate(),
        defaults={"rope_theta": 1_000_000.0},
    ),
    Family(
        name="qwen3_moe",
        model_types=("qwen3_moe",),
        # If the config has no head_dim, it is hidden_size / heads (unlike in qwen3).
        layer_kinds=one_window_if_used,
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),
        routing={"rms_norm_eps": 1e-6},
    ),
    Family(
        name="phi3",
        model_types=("phi3",),
        layer_kinds=one_window,
        modules=(
            Module(
                name="qkv_proj",
                form=Form.INPUT,
                shares=((Role.Q, fused_query), (Role.K, fused_key), (Role.V, fused_value)),
            ),
            output_projection("o_proj"),
        ),
    ),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        layer_kinds=all_full,
        modules=(
            Module(
                name="query_key_value",
                form=Form.INPUT,
                shares=(
                    (Role.Q, interleaved_query),
                    (Role.K, interleaved_key),
                    (Role.V, interleaved_value),
                ),
                bias=ATTENTION_BIAS,
            ),
            output_projection("dense", bias=ATTENTION_BIAS),
        ),
        block="layers.{layer}.attention.",
        aliases={"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
        defaults={"attention_bias": True, "partial_rotary_factor": 0.25},
    ),
    Family(
        name="minimax_m2",
        model_types=("minimax_m2",),
        layer_kinds=all_full,
        modules=(*separate(), *flat_norms()),
        defaults={"head_dim": 128, "rope_theta": 5_000_000.0},
        routing={"rms_norm_eps": 1e-6},
    ),
    Family(
        name="gemma",
        model_types=("gemma",),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS),
        defaults={"head_dim": 256},
        routing={"use_bidirectional_attention": None},
    ),
    Family(
        name="olmo",
        model_types=("olmo",),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS),
        routing={"clip_qkv": None},
    ),
    Family(
        name="olmo2",
        model_types=("olmo2",),
        layer_kinds=all_full,
        modules=(*separate(bias=ATTENTION_BIAS), *flat_norms()),
        routing={"rms_norm_eps": 1e-5},
    ),
    Family(
        name="olmoe",
        model_types=("olmoe",),
        layer_kinds=all_full,
        modules=(*separate(bias=ATTENTION_BIAS), *flat_norms()),
        routing={"clip_qkv": None, "rms_norm_eps": 1e-5},
    ),
    Family(
        name="flex_olmo",
        model_types=("flex_olmo",),
        layer_kinds=all_full,
        modules=(*separate(bias=ATTENTION_BIAS), *flat_norms()),
        defaults={"rope_theta": 500_000.0},
        routing={"rms_norm_eps": 1e-6},
    ),
    Family(
        name="glm4",
        model_types=("glm", "glm4"),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS, output_bias=never),
        defaults={"head_dim": 128, "attention_bias": True, "partial_rotary_factor": 0.5},
    ),
    Family(
        name="glm4_moe",
        model_types=("glm4_moe",),
        layer_kinds=all_full,
        modules=(
            *separate(bias=ATTENTION_BIAS, output_bias=never),
            *shared_norms(exists=flag("use_qk_norm")),
        ),
        defaults={"partial_rotary_factor": 0.5},
        routing={"rms_norm_eps": 1e-5},
    ),
    Family(
        name="solar_open",
        model_types=("solar_open",),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS, output_bias=never),
        defaults={"head_dim": 128, "rope_theta": 1_000_000.0},
    ),
    Family(
        name="granite",
        model_types=("granite", "granitemoe", "granitemoeshared"),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS),
        routing={"attention_multiplier": 1.0},  # replaces the factor 1/sqrt(head_dim)
    ),
    Family(
        name="cohere",
        model_types=("cohere",),
        layer_kinds=all_full,
        modules=(
            *separate(bias=ATTENTION_BIAS),
            *norms_of_heads(exists=flag("use_qk_norm")),
        ),
        defaults={"rope_theta": 500_000.0},
        routing={"layer_norm_eps": 1e-5},
    ),
    Family(
        name="seed_oss",
        model_types=("seed_oss",),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS, output_bias=flag("attention_out_bias")),
        defaults={"head_dim": 128, "attention_bias": True},
    ),
    Family(
        name="ernie4_5",
        model_types=("ernie4_5",),
        layer_kinds=all_full,
        modules=separate(bias=USE_BIAS),
        defaults={"head_dim": 128, "rope_theta": 500_000.0},
    ),
    Family(
        name="ernie4_5_moe",
        model_types=("ernie4_5_moe",),
        layer_kinds=all_full,
        modules=separate(bias=USE_BIAS),
        defaults={"rope_theta": 500_000.0},
    ),
    Family(
        name="hunyuan",
        model_types=("hunyuan_v1_dense", "hunyuan_v1_moe"),
        layer_kinds=all_full,
        modules=(
            *separate(bias=ATTENTION_BIAS),
            *shared_norms("query_layernorm", "key_layernorm"),
        ),
        routing={"rms_norm_eps": 1e-5},
    ),
    Family(
        name="starcoder2",
        model_types=("starcoder2",),
        layer_kinds=one_window,
        modules=separate(bias=USE_BIAS),
        defaults={"use_bias": True},
    ),
    Family(
        name="stablelm",
        model_types=("stablelm",),
        layer_kinds=all_full,
        modules=separate(bias=flag("use_qkv_bias"), output_bias=never),
        head_dim="",
        defaults={"partial_rotary_factor": 0.25},
        refusals=((QK_LAYERNORM, "its q/k norms are separate modules for each head"),),
    ),
    Family(
        name="phi",
        model_types=("phi",),
        layer_kinds=all_full,
        modules=(
            *separate(bias=always, output="dense"),
            *shared_norms("q_layernorm", "k_layernorm", exists=QK_LAYERNORM, bias=always),
        ),
        defaults={"partial_rotary_factor": 0.5},
        routing={"layer_norm_eps": 1e-5},
    ),
    Family(
        name="phimoe",
        model_types=("phimoe",),
        layer_kinds=one_window,
        modules=separate(bias=ATTENTION_BIAS),
        defaults={"rope_theta": 1_000_000.0},
    ),
    Family(
        name="apertus",
        model_types=("apertus",),
        layer_kinds=all_full,
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),
        defaults={
            "rope_theta": 12_000_000.0,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 12_000_000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        },
        routing={"rms_norm_eps": 1e-5},
    ),
    Family(
        name="nemotron",
        model_types=("nemotron",),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS),
        defaults={"partial_rotary_factor": 0.5},
    ),
    Family(
        name="helium",
        model_types=("helium",),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS, output_bias=never),
        defaults={"head_dim": 128, "rope_theta": 100_000.0},
    ),
    Family(
        name="ministral3",
        model_types=("ministral3",),
        layer_kinds=one_window,
        modules=separate(),
        defaults={"head_dim": 128, "rope_theta": 1_000_000.0},
    ),
)
