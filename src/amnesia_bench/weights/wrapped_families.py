"""Rows of the architecture table for decoders that are released inside a multimodal wrapper.

Only the wrapper's decoder is used; its towers and their configs are ignored
(config_keys.decoder_config, attention_map). If text_config has no model_type, the wrapper's is
used. Wrappers such as LLaVA, SmolVLM and InternVL need no row, because the decoder inside has one.
"""

from __future__ import annotations

from amnesia_bench.weights.family import (
    Family,
    always,
    flag,
    marked_without_rope,
    never,
    separate,
    shared_norms,
)
from amnesia_bench.weights.layer_kinds import (
    all_but,
    all_full,
    by_marks,
    chunks_with_rope,
    upper_layers_slide,
)

ATTENTION_BIAS = flag("attention_bias")

WRAPPED_FAMILIES = (
    Family(
        name="qwen2_vl",
        # Before transformers 4.52, the decoder's keys were on the same level as vision_config.
        model_types=("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"),
        layer_kinds=by_marks("layer_types", otherwise=upper_layers_slide),
        modules=separate(bias=always, output_bias=never),
        head_dim="",
        defaults={"rope_theta": 1_000_000.0, "max_window_layers": 80},
    ),
    Family(
        name="qwen2_5_omni",
        model_types=("qwen2_5_omni_text", "qwen2_5_omni_thinker"),
        layer_kinds=by_marks("layer_types", otherwise=upper_layers_slide),
        modules=separate(bias=always, output_bias=never),
        defaults={"rope_theta": 1_000_000.0, "max_window_layers": 28},
    ),
    Family(
        name="qwen3_vl",
        model_types=("qwen3_vl_text", "qwen3_vl"),
        layer_kinds=all_full,
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),
        defaults={"head_dim": 128, "rope_theta": 500_000.0},
        routing={"rms_norm_eps": 1e-6},
    ),
    Family(
        name="qwen3_vl_moe",
        model_types=("qwen3_vl_moe_text", "qwen3_vl_moe"),
        layer_kinds=all_full,
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),
        defaults={"rope_theta": 500_000.0},
        routing={"rms_norm_eps": 1e-6},
    ),
    Family(
        name="qwen3_omni_moe",
        model_types=("qwen3_omni_moe_text", "qwen3_omni_moe_thinker"),
        layer_kinds=all_full,
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),
        defaults={"rope_theta": 1_000_000.0},
        routing={"rms_norm_eps": 1e-6},
    ),
    Family(
        name="llama4",
        model_types=("llama4_text", "llama4"),
        layer_kinds=by_marks("layer_types", otherwise=chunks_with_rope),
        modules=separate(bias=ATTENTION_BIAS),  # its qk-norms have no weights
        unrotated=marked_without_rope,
        window="attention_chunk_size",
        defaults={
            "head_dim": 128,
            "num_key_value_heads": 8,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192,
            "rope_theta": 500_000.0,
        },
        routing={
            "use_qk_norm": True,
            "attn_temperature_tuning": True,
            "attn_scale": 0.1,
            "floor_scale": 8192,
            "rms_norm_eps": 1e-5,
        },
    ),
    Family(
        name="mllama",
        model_types=("mllama_text_model", "mllama"),
        layer_kinds=all_but("cross_attention_layers"),
        modules=separate(),
        defaults={
            "cross_attention_layers": (3, 8, 13, 18, 23, 28, 33, 38),
            "rope_theta": 500_000.0,
        },
    ),
    Family(
        name="glm4v",
        model_types=("glm4v_text", "glm4v"),
        layer_kinds=all_full,
        modules=separate(bias=always, output_bias=never),
        head_dim="",
    ),
    Family(
        name="glm4v_moe",
        model_types=("glm4v_moe_text", "glm4v_moe"),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS, output_bias=never),
        defaults={"attention_bias": True, "partial_rotary_factor": 0.5},
    ),
    Family(
        name="ernie4_5_vl_moe",
        model_types=("ernie4_5_vl_moe_text", "ernie4_5_vl_moe", "ernie4_5_moe_vl"),
        layer_kinds=all_full,
        modules=separate(bias=flag("use_bias")),
        defaults={"rope_theta": 500_000.0},
    ),
)
