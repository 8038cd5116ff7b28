"""Rows of the architecture table for models whose every layer is softmax attention."""

from __future__ import annotations

from amnesia_bench.records.roles import LayerKind, Role
from amnesia_bench.weights.family import (
    Family,
    Form,
    Module,
    always,
    flag,
    flat_norms,
    never,
    output_projection,
    separate,
    shared_norms,
)
from amnesia_bench.weights.layer_kinds import (
    all_full,
    by_marks,
    every_nth,
    lower_even_layers_slide,
    one_window,
    one_window_if_used,
    upper_layers_slide,
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

SOFTMAX_FAMILIES = (
    Family(
        name="llama",
        model_types=("llama",),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS),
    ),
    Family(
        name="mistral",
        model_types=("mistral",),
        # MistralModel ignores layer_types: one window for the whole model, null since v0.3.
        layer_kinds=one_window,
        modules=separate(),
    ),
    Family(
        name="mixtral",
        model_types=("mixtral",),
        layer_kinds=one_window,
        modules=separate(),
        defaults={"rope_theta": 1_000_000.0},
    ),
    Family(
        name="qwen2",
        model_types=("qwen2",),
        layer_kinds=by_marks("layer_types", otherwise=upper_layers_slide),
        modules=separate(bias=always, output_bias=never),
        defaults={"max_window_layers": 28},
    ),
    Family(
        name="qwen2_moe",
        model_types=("qwen2_moe",),
        layer_kinds=by_marks("layer_types", otherwise=lower_even_layers_slide),
        modules=separate(bias=flag("qkv_bias"), output_bias=never),
        defaults={"qkv_bias": True, "max_window_layers": 28},
    ),
    Family(
        name="qwen3",
        model_types=("qwen3",),
        layer_kinds=by_marks("layer_types", otherwise=upper_layers_slide),
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),
        defaults={"head_dim": 128, "max_window_layers": 28},
        routing={"rms_norm_eps": 1e-6},
    ),
    Family(
        name="qwen3_moe",
        model_types=("qwen3_moe",),
        # Unlike qwen3, a config without head_dim means hidden_size / heads.
        layer_kinds=one_window_if_used,
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),
        routing={"rms_norm_eps": 1e-6},
    ),
    Family(
        name="gemma3",
        model_types=("gemma3_text", "gemma3"),
        layer_kinds=by_marks(
            "layer_types", otherwise=every_nth("sliding_window_pattern", LayerKind.SLIDING)
        ),
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),  # norms scale by 1 + w
        local_rope_theta="rope_local_base_freq",
        # The text_config of the released wrappers leaves out all of these.
        defaults={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
        aliases={"_sliding_window_pattern": "sliding_window_pattern"},
        routing={
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": None,
            "use_bidirectional_attention": False,
            "rms_norm_eps": 1e-6,
        },
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
)
