"""Rows of the architecture table for models that mix softmax attention with something else.

In hypenet, jet_nemotron and the fla models, linear and softmax layers have tensors with the same
names. So layer kinds are read from the config and never guessed from tensor names.
"""

from __future__ import annotations

from amnesia_bench.records.roles import LayerKind, Role
from amnesia_bench.weights.config_keys import Config, lookup
from amnesia_bench.weights.family import (
    Family,
    Form,
    Module,
    SharedBlocks,
    always,
    flag,
    flat_norms,
    never,
    separate,
    shared_norms,
)
from amnesia_bench.weights.layer_kinds import (
    all_full,
    attn_dict,
    attn_type_list,
    by_indices,
    by_marks,
    by_pattern,
    cycled_blocks,
    every_nth,
    period_and_offset,
)
from amnesia_bench.weights.row_layouts import (
    gated_query,
    gated_query_gate,
    one_row_per_query_head,
    per_query_head,
)

ATTENTION_BIAS = flag("attention_bias")


def _rope_not_null(config: Config) -> bool:
    # OlmoHybridModel builds no rotary embedding if rope_parameters has rope_theta: null.
    rope = lookup(config, "rope_parameters")
    return not (isinstance(rope, dict) and "rope_theta" in rope and rope["rope_theta"] is None)


def _position_embedding_is_rope(config: Config) -> bool:
    return lookup(config, "position_embedding_type") == "rope"


def _query_with_gate() -> tuple[Module, ...]:
    """Return modules whose q_proj holds q and the output gate, alternating per head."""
    both = ((Role.Q, gated_query), (Role.GATE, gated_query_gate))
    q_proj = Module(name="q_proj", form=Form.INPUT, shares=both, bias=ATTENTION_BIAS)
    return (q_proj, *separate(bias=ATTENTION_BIAS)[1:], *shared_norms())


def _fla(
    name: str,
    model_types: tuple[str, ...],
    block: str = "layers.{layer}.attn.",
) -> Family:
    """Return a family of flash-linear-attention, whose blocks read config.attn["layers"]."""
    return Family(
        name=name,
        model_types=model_types,
        layer_kinds=attn_dict,  # linear mixers have the same path and tensor names
        modules=separate(bias=flag("attn.qkv_bias"), output_bias=never),
        block=block,
        num_query_heads="attn.num_heads",
        num_kv_heads="attn.num_kv_heads",
        head_dim="",  # always hidden / heads; the config's head_dim is for linear mixers
        window="attn.window_size",
        rope_theta="attn.rope_theta",
    )


HYBRID_FAMILIES = (
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
        defaults={
            "attn_use_rope": True
        },  # of the official config class; released models set it to false
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
    Family(
        name="falcon_h1",
        model_types=("falcon_h1",),
        layer_kinds=all_full,  # every layer runs attention and an SSM in parallel
        modules=separate(bias=ATTENTION_BIAS),
        # muP scalars outside the weights: the first multiplies k, the second the block's input.
        routing={"key_multiplier": 1.0, "attention_in_multiplier": 1.0},
    ),
    Family(
        name="jamba",
        model_types=("jamba",),
        layer_kinds=period_and_offset,
        modules=separate(),
        rotates=never,
        defaults={"attn_layer_period": 8, "attn_layer_offset": 4},
    ),
    Family(
        name="bamba",
        model_types=("bamba",),
        layer_kinds=by_indices("attn_layer_indices"),
        modules=separate(bias=ATTENTION_BIAS),
        defaults={"partial_rotary_factor": 0.5},
    ),
    Family(
        name="nemotron_h",
        model_types=(
            "nemotron_h",
            # Multimodal wrappers: transformers' own, and the names in the remote code of the
            # released ones, whose llm_config has no model_type.
            "nemotron_h_omni",
            "NemotronH_Nano_VL_V2",
            "NemotronH_Nano_Omni_Reasoning_V3",
        ),
        layer_kinds=by_marks("layers_block_type", otherwise=by_pattern),
        modules=separate(),
        # Attention, Mamba, MLP and MoE blocks are all called mixer.
        block="layers.{layer}.mixer.",
        rotates=never,
        defaults={"head_dim": 128},
    ),
    Family(
        name="granitemoehybrid",
        model_types=("granitemoehybrid",),
        layer_kinds=by_marks("layer_types", "layers_block_type"),
        modules=separate(bias=ATTENTION_BIAS),
        rotates=_position_embedding_is_rope,
        routing={"attention_multiplier": 1.0},  # replaces 1/sqrt(head_dim)
    ),
    Family(
        name="lfm2",
        model_types=("lfm2", "lfm2_moe"),
        layer_kinds=by_marks("layer_types", otherwise=by_indices("full_attn_idxs", all_full)),
        modules=(*separate(output="out_proj"), *shared_norms("q_layernorm", "k_layernorm")),
        defaults={"rope_theta": 1_000_000.0},
        routing={"norm_eps": 1e-5},
    ),
    Family(
        name="lfm3",
        model_types=("lfm3",),
        layer_kinds=by_marks("layer_types"),
        modules=(
            *separate(bias=ATTENTION_BIAS),
            *shared_norms(),
            Module(
                name="gate_proj",  # g_proj in transformers' module
                form=Form.INPUT,
                shares=((Role.GATE, one_row_per_query_head),),
                exists=flag("use_attention_gate"),
            ),
        ),
        defaults={
            "head_dim": 128,
            "use_attention_gate": True,
            "sliding_window": 256,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": 1_000_000.0,
                    "partial_rotary_factor": 0.5,
                },
            },
        },
        routing={"norm_eps": 1e-5},
    ),
    Family(
        name="zamba2",
        model_types=("zamba2",),
        layer_kinds=by_marks("layers_block_type"),
        modules=separate(),
        block="layers.{layer}.shared_transformer.self_attn.",
        inner_multiple=2,  # the input is [hidden states, embeddings]
        head_dim="",  # always inner / heads (Zamba2Config ignores the key)
        rotates=flag("use_mem_rope"),
        routing={"use_long_context": False},  # rescales the rope base
        shared=SharedBlocks(
            count_key="num_mem_blocks",
            adapters_if=flag("use_shared_attention_adapter"),
            adapters=(
                (Role.Q, "linear_q_adapter_list"),
                (Role.K, "linear_k_adapter_list"),
                (Role.V, "linear_v_adapter_list"),
            ),
        ),
        defaults={"num_mem_blocks": 1, "adapter_rank": 128},
    ),
    Family(
        name="zamba",
        model_types=("zamba",),
        layer_kinds=by_marks("layers_block_type"),
        modules=separate(),
        block="layers.{layer}.shared_transf.self_attn.",
        inner_multiple=2,
        head_dim="attention_head_dim",
        rotates=never,
        shared=SharedBlocks(count_key=None),
    ),
    Family(
        name="olmo_hybrid",
        model_types=("olmo_hybrid",),
        layer_kinds=by_marks(
            "layer_types", otherwise=every_nth("full_attention_interval", LayerKind.LINEAR)
        ),
        modules=(*separate(bias=ATTENTION_BIAS), *flat_norms()),
        rotates=_rope_not_null,
        defaults={"full_attention_interval": 4},
        routing={"rms_norm_eps": 1e-6},
    ),
    Family(
        name="minimax",
        # The last two are remote code (config.json and modeling_minimax_m1.py of
        # MiniMaxAI/MiniMax-M1-80k): attn_type_list, q_proj ... o_proj in the layers marked 1,
        # qkv_proj in the others.
        model_types=("minimax", "minimax_text_01", "minimax_m1"),
        layer_kinds=by_marks("layer_types", otherwise=attn_type_list),
        modules=separate(),
        defaults={"rope_theta": 1_000_000.0},
    ),
    Family(
        name="recurrent_gemma",
        model_types=("recurrent_gemma",),
        layer_kinds=cycled_blocks,
        modules=separate(bias=ATTENTION_BIAS, output_bias=always),
        block="layers.{layer}.temporal_block.",
        window="attention_window_size",
        defaults={
            "block_types": ("recurrent", "recurrent", "attention"),
            "attention_window_size": 2048,
            "partial_rotary_factor": 0.5,
        },
    ),
    _fla(
        "fla hybrid",
        (
            "abc",
            "comba",
            "delta_net",
            "gated_deltanet",
            "gated_deltaproduct",
            "gla",
            "gsa",
            "hgrn",
            "hgrn2",
            "kda",
            "lightnet",
            "linear_attn",
            "mesa_net",
            "precond_gated_deltanet",
            "precond_kda",
            "raven",
            "retnet",
            "rwkv6",
            "rwkv7",
        ),
    ),
    _fla("samba", ("samba",), block="layers.{layer}.mixer."),
)
