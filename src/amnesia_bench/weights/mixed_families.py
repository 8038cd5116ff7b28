"""Rows of the architecture table for softmax models whose layers are not all alike.

Some layers attend over a window (in qwen2 and related models, only if the config enables it), some
have no RoPE, and some use the keys of an earlier layer. The config determines which layers these
are; where a config omits this, the default of its config class applies.
"""

from __future__ import annotations

from collections.abc import Mapping

from amnesia_bench.records.roles import LayerKind, Role
from amnesia_bench.weights.config_keys import Config, lookup, optional_integer
from amnesia_bench.weights.family import (
    Family,
    Form,
    Module,
    always,
    flag,
    flat_norms,
    full_layers,
    marked_without_rope,
    never,
    separate,
    shared_norms,
    sinks,
)
from amnesia_bench.weights.layer_kinds import (
    by_marks,
    every_nth,
    first_of_four,
    if_windowed,
    last_is_full,
    lower_even_layers_slide,
    one_window,
    upper_layers_slide,
    upper_layers_slide_if_window,
    window_without_rope,
)
from amnesia_bench.weights.row_layouts import per_query_head

ATTENTION_BIAS = flag("attention_bias")
SLIDING = LayerKind.SLIDING


def _full_layers_if_others_slide(config: Config, kinds: tuple[LayerKind, ...]) -> tuple[int, ...]:
    # If the config has no window, Exaone4Attention applies RoPE in every layer.
    return full_layers(config, kinds) if lookup(config, "sliding_window") else ()


def _gemma4_head_dims(config: Config, kinds: tuple[LayerKind, ...]) -> dict[int, int]:
    # In released configs, global_head_dim is the head_dim of the layers without a window. Configs
    # saved by transformers instead have a per_layer_config such as {"05": {"head_dim": 512}}
    # (Gemma4TextConfig).
    by_layer = lookup(config, "per_layer_config")
    if not isinstance(by_layer, Mapping):
        size = optional_integer(config, "global_head_dim") or 512
        return dict.fromkeys(full_layers(config, kinds), size)
    sizes = {
        int(layer): optional_integer(own, "head_dim")
        for layer, own in by_layer.items()
        if str(layer).isdecimal() and isinstance(own, Mapping)
    }
    return {layer: size for layer, size in sizes.items() if size is not None}


def _gemma4(name: str, model_types: tuple[str, ...], *, window: int) -> Family:
    return Family(
        name=name,
        model_types=model_types,
        layer_kinds=last_is_full(by_marks("layer_types", otherwise=every_nth(6, SLIDING))),
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),
        head_dims=_gemma4_head_dims,
        kv_shared="num_kv_shared_layers",
        refusals=(
            (
                flag("attention_k_eq_v"),
                "its layers with full attention use W_K as W_V too (attention_k_eq_v): restoring "
                "the keys would change the values too",
            ),
        ),
        defaults={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": window,
            "num_kv_shared_layers": 0,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": 1_000_000.0,
                    "partial_rotary_factor": 0.25,
                },
            },
        },
        routing={"num_kv_shared_layers": 0, "rms_norm_eps": 1e-6},
    )


MIXED_FAMILIES = (
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
        name="dots1",
        model_types=("dots1",),
        layer_kinds=by_marks("layer_types", otherwise=upper_layers_slide_if_window),
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),
        defaults={"sliding_window": 4096, "max_window_layers": 62},
        routing={"rms_norm_eps": 1e-6},
    ),
    Family(
        name="gemma2",
        model_types=("gemma2", "vaultgemma"),
        layer_kinds=by_marks("layer_types", otherwise=every_nth(2, SLIDING)),
        modules=separate(bias=ATTENTION_BIAS),
        defaults={"head_dim": 256, "num_key_value_heads": 4, "sliding_window": 4096},
        routing={"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0},
    ),
    Family(
        name="gemma3",
        model_types=("gemma3_text", "gemma3"),
        layer_kinds=by_marks(
            "layer_types", otherwise=every_nth("sliding_window_pattern", LayerKind.SLIDING)
        ),
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),  # its norms multiply by 1 + w
        local_rope_theta="rope_local_base_freq",
        # The text_config of the released multimodal wrappers omits all of these keys.
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
        name="gemma3n",
        model_types=("gemma3n_text", "gemma3n"),
        layer_kinds=by_marks("layer_types", otherwise=every_nth(5, SLIDING)),
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),
        local_rope_theta="rope_local_base_freq",
        kv_shared="num_kv_shared_layers",
        defaults={
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "sliding_window": 512,
            "num_kv_shared_layers": 15,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
        routing={"num_kv_shared_layers": 15, "rms_norm_eps": 1e-6},
    ),
    _gemma4("gemma4", ("gemma4_text", "gemma4"), window=512),
    _gemma4("gemma4_unified", ("gemma4_unified_text", "gemma4_unified"), window=1024),
    Family(
        name="gpt_oss",
        model_types=("gpt_oss",),
        layer_kinds=by_marks("layer_types", otherwise=every_nth(2, SLIDING)),
        # The sinks keep the values of the fine-tune unless select.roles includes them.
        modules=(*separate(bias=ATTENTION_BIAS), sinks()),
        defaults={
            "head_dim": 64,
            "num_key_value_heads": 8,
            "attention_bias": True,
            "sliding_window": 128,
            "rope_theta": 150_000.0,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
                "rope_theta": 150_000.0,
            },
        },
    ),
    Family(
        name="olmo3",
        model_types=("olmo3",),
        layer_kinds=by_marks("layer_types", otherwise=every_nth(4, SLIDING)),
        modules=(*separate(bias=ATTENTION_BIAS), *flat_norms()),
        local_rope_theta="rope_theta",  # rope_scaling applies to full layers only (Olmo3Config)
        defaults={"sliding_window": 4096, "rope_theta": 500_000.0},
        routing={"rms_norm_eps": 1e-5},
    ),
    Family(
        name="smollm3",
        model_types=("smollm3",),
        layer_kinds=by_marks("layer_types", otherwise=window_without_rope),
        modules=separate(bias=ATTENTION_BIAS),
        unrotated=marked_without_rope,
        defaults={
            "num_key_value_heads": 4,
            "no_rope_layer_interval": 4,
            "rope_theta": 2_000_000.0,
        },
    ),
    Family(
        name="cohere2",
        model_types=("cohere2",),
        layer_kinds=by_marks("layer_types", otherwise=every_nth("sliding_window_pattern", SLIDING)),
        modules=separate(bias=ATTENTION_BIAS),
        head_dim="",
        unrotated=full_layers,
        defaults={"sliding_window": 4096, "sliding_window_pattern": 4},
    ),
    Family(
        name="exaone4",
        model_types=("exaone4", "exaone_moe"),
        layer_kinds=by_marks(
            "layer_types", otherwise=if_windowed(every_nth("sliding_window_pattern", SLIDING))
        ),
        modules=(*separate(), *shared_norms()),
        unrotated=_full_layers_if_others_slide,
        defaults={"sliding_window": 4096, "sliding_window_pattern": 4},
        routing={"rms_norm_eps": 1e-5},
    ),
    Family(
        name="ministral",
        model_types=("ministral",),
        layer_kinds=by_marks("layer_types", otherwise=one_window),
        modules=separate(),
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Family(
        name="cwm",
        model_types=("cwm",),
        layer_kinds=by_marks("layer_types", otherwise=first_of_four),
        modules=separate(),
        defaults={
            "head_dim": 128,
            "num_key_value_heads": 8,
            "sliding_window": 8192,
            "rope_theta": 1_000_000.0,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1_000_000.0,
                "factor": 16.0,
                "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        },
    ),
    Family(
        name="afmoe",
        model_types=("afmoe",),
        layer_kinds=by_marks(
            "layer_types", otherwise=every_nth("global_attn_every_n_layers", SLIDING)
        ),
        modules=(
            *separate(bias=ATTENTION_BIAS),
            *shared_norms(),
            Module(name="gate_proj", form=Form.INPUT, shares=((Role.GATE, per_query_head),)),
        ),
        unrotated=full_layers,
        defaults={
            "head_dim": 128,
            "sliding_window": 1024,
            "global_attn_every_n_layers": 4,
        },
        routing={"rms_norm_eps": 1e-5},
    ),
)
