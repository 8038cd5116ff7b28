"""The architecture table: one row per family of checkpoints.

Names and keys are those of checkpoints on disk, which differ from module names in several families
(transformers/conversion_mapping.py). Read against transformers 5.23; the linear layers of
hypenet, jet_nemotron and the fla models have tensors of the same names as their softmax layers,
which is why layers come from the config and never from names.

To add a family: add a row here and a pico config in tests/pico.py.
"""

from __future__ import annotations

from amnesia_bench.records.roles import LayerKind, Role
from amnesia_bench.weights.config_keys import Config, lookup
from amnesia_bench.weights.family import (
    Family,
    Form,
    Module,
    always,
    flag,
    never,
    output_projection,
    separate,
    shared_norms,
)
from amnesia_bench.weights.layer_kinds import (
    all_full,
    by_marks,
    every_nth,
    one_window,
    upper_layers_slide,
)
from amnesia_bench.weights.row_layouts import (
    fused_key,
    fused_query,
    fused_value,
    gated_query,
    gated_query_gate,
    interleaved_key,
    interleaved_query,
    interleaved_value,
    per_query_head,
)

ATTENTION_BIAS = flag("attention_bias")


def _rope_not_null(config: Config) -> bool:
    # OlmoHybridModel builds no rotary embedding where rope_parameters holds rope_theta: null.
    rope = lookup(config, "rope_parameters")
    return not (isinstance(rope, dict) and "rope_theta" in rope and rope["rope_theta"] is None)


def _position_embedding_is_rope(config: Config) -> bool:
    return lookup(config, "position_embedding_type") == "rope"


def _query_with_gate() -> tuple[Module, ...]:
    """q_proj holds q and the output gate, alternating per head; the rest is separate."""
    both = ((Role.Q, gated_query), (Role.GATE, gated_query_gate))
    q_proj = Module(name="q_proj", form=Form.INPUT, shares=both, bias=ATTENTION_BIAS)
    return (q_proj, *separate(bias=ATTENTION_BIAS)[1:], *shared_norms())


PURE_SOFTMAX = (
    Family(
        name="llama",
        model_types=("llama",),
        layer_kinds=all_full,
        modules=separate(bias=ATTENTION_BIAS),
    ),
    Family(
        name="mistral",
        model_types=("mistral", "mixtral"),
        # MistralModel ignores layer_types: one window for the whole model, null since v0.3.
        layer_kinds=one_window,
        modules=separate(),
    ),
    Family(
        name="qwen2",
        model_types=("qwen2", "qwen2_moe"),
        layer_kinds=by_marks("layer_types", otherwise=upper_layers_slide),
        modules=separate(bias=always, output_bias=never),
    ),
    Family(
        name="qwen3",
        model_types=("qwen3", "qwen3_moe"),
        layer_kinds=by_marks("layer_types", otherwise=upper_layers_slide),
        modules=(*separate(bias=ATTENTION_BIAS), *shared_norms()),
        defaults={"head_dim": 128},
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
        roots=("gpt_neox.", ""),
        block="layers.{layer}.attention.",
        aliases={"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
        defaults={"attention_bias": True, "partial_rotary_factor": 0.25},
        # Causal-mask buffers of checkpoints saved before transformers 4.30.
        buffers=("rotary_emb.inv_freq", "bias", "masked_bias"),
    ),
)

HYBRID = (
    Family(
        name="hypenet",
        model_types=("hypenet",),
        # Linear layers have q_proj, k_proj, q_norm, ... too, with more kv heads.
        layer_kinds=by_marks("mixer_types"),
        modules=(
            *separate(bias=ATTENTION_BIAS),
            *shared_norms(),
            Module(
                name="o_gate",
                form=Form.INPUT,
                shares=((Role.GATE, per_query_head),),
                exists=flag("attn_use_output_gate"),
            ),
        ),
        rotates=flag("attn_use_rope"),
        # q is multiplied by log(position + a) / log(a); a == null means no scaling.
        routing={"attn_logits_scaling": None, "rms_norm_eps": 1e-6},
    ),
    Family(
        name="jet_nemotron",
        model_types=("jet_nemotron",),
        # "jet" layers own q_proj and k_proj too, without biases.
        layer_kinds=by_marks("layer_types"),
        modules=separate(bias=always, output_bias=never),
        window="efficient_attention_config.swa.window_size",
    ),
    Family(
        name="qwen3_next",
        model_types=(
            "qwen3_next",
            "qwen3_5",
            "qwen3_5_text",
            "qwen3_5_moe",
            "qwen3_5_moe_text",
        ),
        layer_kinds=by_marks(
            "layer_types", otherwise=every_nth("full_attention_interval", LayerKind.LINEAR)
        ),
        modules=_query_with_gate(),  # norms scale by 1 + w
        defaults={
            "head_dim": 256,
            "full_attention_interval": 4,
            "partial_rotary_factor": 0.25,
        },
        routing={"rms_norm_eps": 1e-6},
    ),
)

FAMILIES = (*PURE_SOFTMAX, *HYBRID)

_MLA = (
    "W_K is not separable in multi-head latent attention: one latent projection feeds both the "
    "keys and the values, so restoring the keys would change what is read as well as where"
)
# model_type -> why W_Q and W_K cannot be restored. Found by kv_b_proj in transformers 5.23.
REFUSED = dict.fromkeys(
    (
        "axk1",
        "axk2",
        "bailing_hybrid",
        "bailing_moe_v2_5",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "dots3_note",
        "glm4_moe_lite",
        "glm5_next",
        "glm5_next_text",
        "glm_moe_dsa",
        "hy_v4",
        "kimi_k2",
        "kimi_k25",
        "kimi_linear",
        "longcat_flash",
        "minicpm3",
        "mistral4",
        "mistral_large4",
        "mla",
        "youtu",
    ),
    _MLA,
)
