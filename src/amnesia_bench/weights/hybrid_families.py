"""Rows of the architecture table for hybrids: models with softmax layers and other mixers.

In hypenet, jet_nemotron and the fla models, linear layers and softmax layers have tensors with the
same names. So the kind of a layer is read from the config and never inferred from tensor names.
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
    # OlmoHybridModel creates no rotary embedding if rope_theta in rope_parameters is null.
    rope = lookup(config, "rope_parameters")
    return not (isinstance(rope, dict) and "rope_theta" in rope and rope["rope_theta"] is None)


def _position_embedding_is_rope(config: Config) -> bool:
    return lookup(config, "position_embedding_type") == "rope"


def _query_with_gate() -> tuple[Module, ...]:
    """Return modules with a q_proj in which q and the output gate alternate head by head."""
    both = ((Role.Q, gated_query), (Role.GATE, gated_query_gate))
    q_proj = Module(name="q_proj", form=Form.INPUT, shares=both, bias=ATTENTION_BIAS)
    return (q_proj, *separate(bias=ATTENTION_BIAS)[1:], *shared_norms())


def _fla(
    name: str,
    model_types: tuple[str, ...],
    block: str = "layers.{layer}.attn.",
) -> Family:
    """Return a flash-linear-attention family, whose softmax layers are in config.attn["layers"]."""
    return Family(
        name=name,
        model_types=model_types,
        layer_kinds=attn_dict,  # tensor names cannot tell: linear layers have the same
        modules=separate(bias=flag("attn.qkv_bias"), output_bias=never),
        block=block,
        num_query_heads="attn.num_heads",
        num_kv_heads="attn.num_kv_heads",
        head_dim="",  # always hidden / heads; head_dim in the config is for linear layers
        window="attn.window_size",
        rope_theta="attn.rope_theta",
    )


HYBRID_FAMILIES = (
    Family(
        name="hypenet",
        model_types=("hypenet",),
        # Linear layers also have q_proj, k_proj, q_norm and so on, but with more KV heads.
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
        },  # the default of the official config class; released models set it to false
        # If attn_logits_scaling is a, q is multiplied by log(position + a) / log(a); if null, by 1.
        routing={"attn_logits_scaling": None, "rms_norm_eps": 1e-6},
    ),
    Family(
        name="jet_nemotron",
        model_types=("jet_nemotron",),
        # "jet" layers also have q_proj and k_proj, but without biases.
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
        modules=_query_with_gate(),  # its norms multiply by 1 + w
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
        # muP scalars that are not part of the weights: key_multiplier multiplies k, and
        # attention_in_multiplier multiplies the input of the block.
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
            # Multimodal wrappers: first that of transformers, then those of released remote code,
            # whose llm_config has no model_type.
            "nemotron_h_omni",
            "NemotronH_Nano_VL_V2",
            "NemotronH_Nano_Omni_Reasoning_V3",
        ),
        layer_kinds=by_marks("layers_block_type", otherwise=by_pattern),
        modules=separate(),
        # Attention, Mamba, MLP and MoE blocks are all named "mixer".
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
        routing={"attention_multiplier": 1.0},  # replaces the factor 1/sqrt(head_dim)
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
                name="gate_proj",  # named g_proj in transformers' module
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
        inner_multiple=2,  # the input concatenates hidden states and embeddings
        head_dim="",  # always inner / heads (Zamba2Config ignores head_dim)
        rotates=flag("use_mem_rope"),
        routing={"use_long_context": False},  # if true, the rope base is rescaled
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
        # The last two types belong to remote code (see config.json and modeling_minimax_m1.py of
        # MiniMaxAI/MiniMax-M1-80k). In attn_type_list, 1 marks the layers with q_proj, k_proj,
        # v_proj and o_proj; the others have a qkv_proj.
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
