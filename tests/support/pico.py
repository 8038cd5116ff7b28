"""Checkpoints of a few thousand parameters, saved by transformers' own classes.

One row per family that transformers can build on a CPU. Every model mixes softmax and linear layers
where the family does, and has more query heads than key/value heads where it can, so that a wrong
row or a wrong layer shows.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from tests.support.transformers_release import is_before

transformers_logging.disable_progress_bar()

VOCAB = 96


@dataclass(frozen=True, kw_only=True)
class Pico:
    """How to build one family small.

    `attention` is the class of its softmax attention modules in transformers, an answer to "which
    layers are softmax" that does not come from our own table; `softmax` are those layers.
    """

    model_type: str
    attention: str
    softmax: tuple[int, ...]
    config: Mapping[str, Any]
    sliding: tuple[int, ...] = ()
    auto: type = AutoModelForCausalLM


SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GATED_DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
QWEN3_5_TEXT = {**SMALL, **GATED_DELTA, "head_dim": 16}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
QWEN2_VISION = {
    "depth": 1,
    "embed_dim": 16,
    "hidden_size": 32,
    "num_heads": 2,
    "mlp_ratio": 1,
    "patch_size": 4,
}
QWEN_TOKENS = {
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_start_token_id": 7,
    "vision_end_token_id": 8,
}
MROPE = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [1, 1, 2]}
QWEN_AUDIO = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "num_mel_bins": 8,
    "output_dim": 32,
}
GLM_VISION = {**QWEN_VISION, "out_hidden_size": 32, "image_size": 28, "patch_size": 14}
GLM_TOKENS = {
    "image_token_id": 5,
    "video_token_id": 6,
    "image_start_token_id": 7,
    "image_end_token_id": 8,
    "video_start_token_id": 9,
    "video_end_token_id": 10,
}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED_EXPERTS = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
RADIO = {**SIGLIP, "video_temporal_patch_size": 2}
NEMOTRON_H = {
    **{k: v for k, v in SMALL.items() if k != "num_hidden_layers"},
    "hybrid_override_pattern": "ME*-*",
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 1,
    "ssm_state_size": 8,
    "chunk_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "use_mamba_kernels": False,
}
GEMMA4_TEXT = {
    **SMALL,
    "num_hidden_layers": 6,
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
}
GEMMA3_TEXT = {**SMALL, "num_hidden_layers": 6, "head_dim": 8, "sliding_window": 4}

PICOS = {
    "llama": Pico(
        model_type="llama",
        attention="LlamaAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "attention_bias": True},
    ),
    "mistral": Pico(
        model_type="mistral",
        attention="MistralAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "sliding_window": None, "head_dim": 16},
    ),
    "mistral_window": Pico(
        model_type="mistral",
        attention="MistralAttention",
        softmax=(0, 1, 2, 3),
        sliding=(0, 1, 2, 3),
        config={**SMALL, "sliding_window": 4},
    ),
    "mixtral": Pico(
        model_type="mixtral",
        attention="MixtralAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "sliding_window": None, "num_local_experts": 4},
    ),
    "qwen2": Pico(
        model_type="qwen2",
        attention="Qwen2Attention",
        softmax=(0, 1, 2, 3),
        sliding=(3,),
        config={**SMALL, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    ),
    "qwen2_moe": Pico(
        model_type="qwen2_moe",
        attention="Qwen2MoeAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, **MOE, "shared_expert_intermediate_size": 16},
    ),
    "qwen3": Pico(
        model_type="qwen3",
        attention="Qwen3Attention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16, "attention_bias": True},
    ),
    "qwen3_moe": Pico(
        model_type="qwen3_moe",
        attention="Qwen3MoeAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, **MOE, "head_dim": 16},
    ),
    "gemma3": Pico(
        model_type="gemma3_text",
        attention="Gemma3Attention",
        softmax=(0, 1, 2, 3, 4, 5),
        sliding=(0, 1, 2, 3, 4),
        config=GEMMA3_TEXT,
    ),
    "gemma3_vl": Pico(
        model_type="gemma3",
        attention="Gemma3Attention",
        softmax=(0, 1, 2, 3, 4, 5),
        sliding=(0, 1, 2, 3, 4),
        config={
            "text_config": GEMMA3_TEXT,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 5,
        },
        auto=AutoModelForImageTextToText,
    ),
    "phi3": Pico(
        model_type="phi3",
        attention="Phi3Attention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "sliding_window": None},
    ),
    "gpt_neox": Pico(
        model_type="gpt_neox",
        attention="GPTNeoXAttention",
        softmax=(0, 1, 2, 3),
        config={k: v for k, v in SMALL.items() if k != "num_key_value_heads"},
    ),
    "minimax_m2": Pico(
        model_type="minimax_m2",
        attention="MiniMaxM2Attention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen3_next": Pico(
        model_type="qwen3_next",
        attention="Qwen3NextAttention",
        softmax=(3,),
        config={
            **QWEN3_5_TEXT,
            **MOE,
            "shared_expert_intermediate_size": 16,
            "attention_bias": True,
        },
    ),
    "qwen3_5": Pico(
        model_type="qwen3_5_text",
        attention="Qwen3_5Attention",
        softmax=(3,),
        config=QWEN3_5_TEXT,
    ),
    "qwen3_5_vl": Pico(
        model_type="qwen3_5",
        attention="Qwen3_5Attention",
        softmax=(3,),
        config={
            "text_config": QWEN3_5_TEXT,
            "vision_config": QWEN_VISION,
            "image_token_id": 5,
            "video_token_id": 6,
            "vision_start_token_id": 7,
            "vision_end_token_id": 8,
        },
        auto=AutoModelForImageTextToText,
    ),
    "qwen3_5_moe": Pico(
        model_type="qwen3_5_moe_text",
        attention="Qwen3_5MoeAttention",
        softmax=(1, 3),
        config={
            **QWEN3_5_TEXT,
            **MOE,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "qwen3_5_moe_vl": Pico(
        model_type="qwen3_5_moe",
        attention="Qwen3_5MoeAttention",
        softmax=(3,),
        config={
            "text_config": {**QWEN3_5_TEXT, **MOE, "shared_expert_intermediate_size": 16},
            "vision_config": QWEN_VISION,
            "image_token_id": 5,
            "video_token_id": 6,
            "vision_start_token_id": 7,
            "vision_end_token_id": 8,
        },
        auto=AutoModelForImageTextToText,
    ),
    "falcon_h1": Pico(
        model_type="falcon_h1",
        attention="FalconH1Attention",
        softmax=(0, 1),
        config={
            **SMALL,
            **MAMBA2,
            "num_hidden_layers": 2,
            "mamba_d_ssm": 64,
            "key_multiplier": 0.7,
        },
    ),
    "jamba": Pico(
        model_type="jamba",
        attention="JambaAttention",
        softmax=(1, 3),
        config={
            **SMALL,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": Pico(
        model_type="bamba",
        attention="BambaAttention",
        softmax=(1, 3),
        config={**SMALL, **MAMBA2, "attn_layer_indices": [1, 3]},
    ),
    "nemotron_h": Pico(
        model_type="nemotron_h",
        attention="NemotronHAttention",
        softmax=(2, 4),
        config=NEMOTRON_H,
    ),
    "granitemoehybrid": Pico(
        model_type="granitemoehybrid",
        attention="GraniteMoeHybridAttention",
        softmax=(1, 3),
        config={
            **SMALL,
            **MAMBA2,
            "layer_types": ["mamba", "attention"] * 2,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 16,
            "attention_multiplier": 0.2,
        },
    ),
    "lfm2": Pico(
        model_type="lfm2",
        attention="Lfm2Attention",
        softmax=(1, 3),
        config={**SMALL, "full_attn_idxs": [1, 3]},
    ),
    "lfm2_moe": Pico(
        model_type="lfm2_moe",
        attention="Lfm2MoeAttention",
        softmax=(1, 3),
        config={**SMALL, **MOE, "layer_types": ["conv", "full_attention"] * 2},
    ),
    "lfm3": Pico(
        model_type="lfm3",
        attention="Lfm3Attention",
        softmax=(2, 4),
        sliding=(4,),
        config={**SMALL, "num_hidden_layers": 5, "head_dim": 8, "sliding_window": 4},
    ),
    "zamba2": Pico(
        model_type="zamba2",
        attention="Zamba2Attention",
        softmax=(1, 2, 3, 5),
        config={
            **SMALL,
            "num_hidden_layers": 6,
            "num_key_value_heads": 4,
            "layers_block_type": ["mamba", "hybrid", "hybrid", "hybrid", "mamba", "hybrid"],
            "num_mem_blocks": 2,
            "use_shared_attention_adapter": True,
            "adapter_rank": 4,
            "n_mamba_heads": 8,
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "chunk_size": 8,
            "use_mem_rope": True,
            "use_mamba_kernels": False,
        },
    ),
    "zamba": Pico(
        model_type="zamba",
        attention="ZambaAttention",
        softmax=(1, 3),
        config={
            **SMALL,
            "num_key_value_heads": 4,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "olmo_hybrid": Pico(
        model_type="olmo_hybrid",
        attention="OlmoHybridAttention",
        softmax=(3,),
        config={**SMALL, **GATED_DELTA, "linear_num_value_heads": 2},
    ),
    "minimax": Pico(
        model_type="minimax",
        attention="MiniMaxAttention",
        softmax=(1, 3),
        config={
            **SMALL,
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "block_size": 8,
        },
    ),
    "recurrent_gemma": Pico(
        model_type="recurrent_gemma",
        attention="RecurrentGemmaAttention",
        softmax=(2, 5),
        sliding=(2, 5),
        config={
            **{k: v for k, v in SMALL.items() if k != "max_position_embeddings"},
            "num_hidden_layers": 6,
            "attention_window_size": 4,
            "lru_width": 32,
        },
    ),
    "arcee": Pico(
        model_type="arcee",
        attention="ArceeAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16},
    ),
    "jais2": Pico(
        model_type="jais2",
        attention="Jais2Attention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "attention_bias": True},
    ),
    "qwen2_vl": Pico(
        model_type="qwen2_vl",
        attention="Qwen2VLAttention",
        softmax=(0, 1, 2, 3),
        config={
            "text_config": {**SMALL, "rope_parameters": MROPE},
            "vision_config": QWEN2_VISION,
            **QWEN_TOKENS,
        },
        auto=AutoModelForImageTextToText,
    ),
    "qwen2_5_vl": Pico(
        model_type="qwen2_5_vl",
        attention="Qwen2_5_VLAttention",
        softmax=(0, 1, 2, 3),
        config={
            "text_config": {**SMALL, "rope_parameters": MROPE},
            "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [0]},
            **QWEN_TOKENS,
        },
        auto=AutoModelForImageTextToText,
    ),
    "qwen3_vl": Pico(
        model_type="qwen3_vl",
        attention="Qwen3VLTextAttention",
        softmax=(0, 1, 2, 3),
        config={
            "text_config": {**SMALL, "head_dim": 16, "rope_parameters": MROPE},
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]},
            **QWEN_TOKENS,
        },
        auto=AutoModelForImageTextToText,
    ),
    "qwen3_vl_moe": Pico(
        model_type="qwen3_vl_moe",
        attention="Qwen3VLMoeTextAttention",
        softmax=(0, 1, 2, 3),
        config={
            "text_config": {**SMALL, **MOE, "head_dim": 16, "rope_parameters": MROPE},
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]},
            **QWEN_TOKENS,
        },
        auto=AutoModelForImageTextToText,
    ),
    "qwen2_5_omni": Pico(
        model_type="qwen2_5_omni_thinker",
        attention="Qwen2_5OmniAttention",
        softmax=(0, 1, 2, 3),
        config={
            "text_config": {**SMALL, "rope_parameters": MROPE},
            "vision_config": {**QWEN_VISION, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
            "audio_config": QWEN_AUDIO,
            "image_token_index": 5,
            "video_token_index": 6,
            "audio_token_index": 7,
        },
        auto=AutoModelForImageTextToText,
    ),
    "qwen3_omni_moe": Pico(
        model_type="qwen3_omni_moe_thinker",
        attention="Qwen3OmniMoeThinkerTextAttention",
        softmax=(0, 1, 2, 3),
        config={
            "text_config": {**SMALL, **MOE, "rope_parameters": MROPE},
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]},
            "audio_config": QWEN_AUDIO,
            "image_token_id": 5,
            "video_token_id": 6,
            "audio_token_id": 7,
        },
        auto=AutoModelForImageTextToText,
    ),
    "glm4v": Pico(
        model_type="glm4v",
        attention="Glm4vTextAttention",
        softmax=(0, 1, 2, 3),
        config={
            "text_config": {**SMALL, "rope_parameters": MROPE},
            "vision_config": GLM_VISION,
            **GLM_TOKENS,
        },
        auto=AutoModelForImageTextToText,
    ),
    "glm4v_moe": Pico(
        model_type="glm4v_moe",
        attention="Glm4vMoeTextAttention",
        softmax=(0, 1, 2, 3),
        config={
            "text_config": {**SMALL, **ROUTED_EXPERTS, "head_dim": 16, "rope_parameters": MROPE},
            "vision_config": GLM_VISION,
            **GLM_TOKENS,
        },
        auto=AutoModelForImageTextToText,
    ),
    "ernie4_5_vl_moe": Pico(
        model_type="ernie4_5_vl_moe",
        attention="Ernie4_5_VLMoeTextAttention",
        softmax=(0, 1, 2, 3),
        config={
            "text_config": {
                **SMALL,
                "moe_num_experts": 4,
                "moe_k": 2,
                "moe_intermediate_size": [16, 16],
                "moe_num_shared_experts": 1,
                "rope_parameters": MROPE,
            },
            "vision_config": {**QWEN_VISION, "embed_dim": 16},
            "image_token_id": 5,
            "video_token_id": 6,
        },
        auto=AutoModelForImageTextToText,
    ),
    "mllama": Pico(
        model_type="mllama",
        attention="MllamaTextSelfAttention",
        softmax=(0, 1, 3),
        config={
            "text_config": {
                **SMALL,
                "cross_attention_layers": [2],
                "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_global_layers": 1,
                "attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
                "max_num_tiles": 1,
                "vision_output_dim": 32,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1]],
            },
        },
        auto=AutoModelForImageTextToText,
    ),
    "gemma": Pico(
        model_type="gemma",
        attention="GemmaAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16},
    ),
    "gemma2": Pico(
        model_type="gemma2",
        attention="Gemma2Attention",
        softmax=(0, 1, 2, 3),
        sliding=(0, 2),
        config={
            **SMALL,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 5.0,
            "sliding_window": 4,
        },
    ),
    "gemma3n": Pico(
        model_type="gemma3n_text",
        attention="Gemma3nTextAttention",
        softmax=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        sliding=(0, 1, 2, 3, 5, 6, 7, 8),
        config={
            **SMALL,
            "num_hidden_layers": 10,
            "num_kv_shared_layers": 5,
            "head_dim": 16,
            "sliding_window": 4,
            "laurel_rank": 4,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB,
            "altup_num_inputs": 2,
        },
    ),
    "gemma4": Pico(
        model_type="gemma4_text",
        attention="Gemma4TextAttention",
        softmax=(0, 1, 2, 3, 4, 5),
        sliding=(0, 1, 3, 4),
        config=GEMMA4_TEXT,
    ),
    "gemma4_shared": Pico(
        model_type="gemma4_text",
        attention="Gemma4TextAttention",
        softmax=(0, 1, 2, 3, 4, 5),
        sliding=(0, 1, 3, 4),
        config={**GEMMA4_TEXT, "num_kv_shared_layers": 2},
    ),
    "gpt_oss": Pico(
        model_type="gpt_oss",
        attention="GptOssAttention",
        softmax=(0, 1, 2, 3),
        sliding=(0, 2),
        config={**SMALL, "head_dim": 16, "sliding_window": 4, **LOCAL_EXPERTS},
    ),
    "olmo": Pico(
        model_type="olmo",
        attention="OlmoAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "clip_qkv": 8.0},
    ),
    "olmo2": Pico(
        model_type="olmo2", attention="Olmo2Attention", softmax=(0, 1, 2, 3), config=SMALL
    ),
    "olmo3": Pico(
        model_type="olmo3",
        attention="Olmo3Attention",
        softmax=(0, 1, 2, 3),
        sliding=(0, 1, 2),
        config={**SMALL, "sliding_window": 4},
    ),
    "olmoe": Pico(
        model_type="olmoe",
        attention="OlmoeAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, **MOE},
    ),
    "flex_olmo": Pico(
        model_type="flex_olmo",
        attention="FlexOlmoAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, **MOE},
    ),
    "glm": Pico(
        model_type="glm",
        attention="GlmAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16},
    ),
    "glm4": Pico(
        model_type="glm4",
        attention="Glm4Attention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16},
    ),
    "glm4_moe": Pico(
        model_type="glm4_moe",
        attention="Glm4MoeAttention",
        softmax=(0, 1, 2, 3),
        config={
            **SMALL,
            **ROUTED_EXPERTS,
            "head_dim": 16,
            "use_qk_norm": True,
            "attention_bias": True,
        },
    ),
    "solar_open": Pico(
        model_type="solar_open",
        attention="SolarOpenAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, **ROUTED_EXPERTS, "head_dim": 16},
    ),
    "granite": Pico(
        model_type="granite",
        attention="GraniteAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "attention_multiplier": 0.2},
    ),
    "granitemoe": Pico(
        model_type="granitemoe",
        attention="GraniteMoeAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "attention_multiplier": 0.2, **LOCAL_EXPERTS},
    ),
    "granitemoeshared": Pico(
        model_type="granitemoeshared",
        attention="GraniteMoeSharedAttention",
        softmax=(0, 1, 2, 3),
        config={
            **SMALL,
            "attention_multiplier": 0.2,
            "shared_intermediate_size": 16,
            **LOCAL_EXPERTS,
        },
    ),
    "smollm3": Pico(
        model_type="smollm3",
        attention="SmolLM3Attention",
        softmax=(0, 1, 2, 3),
        config=SMALL,
    ),
    "smollm3_window": Pico(
        model_type="smollm3",
        attention="SmolLM3Attention",
        softmax=(0, 1, 2, 3),
        sliding=(1, 3),
        config={
            **SMALL,
            "use_sliding_window": True,
            "sliding_window": 4,
            "no_rope_layer_interval": 2,
        },
    ),
    "smolvlm": Pico(
        model_type="smolvlm",
        attention="LlamaAttention",
        softmax=(0, 1, 2, 3),
        config={
            "text_config": {"model_type": "llama", **SMALL},
            "vision_config": SIGLIP,
            "scale_factor": 2,
            "image_token_id": 5,
        },
        auto=AutoModelForImageTextToText,
    ),
    "cohere": Pico(
        model_type="cohere",
        attention="CohereAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "use_qk_norm": True},
    ),
    "cohere2": Pico(
        model_type="cohere2",
        attention="Cohere2Attention",
        softmax=(0, 1, 2, 3),
        sliding=(0, 1, 2),
        config={**SMALL, "sliding_window": 4},
    ),
    "exaone4": Pico(
        model_type="exaone4",
        attention="Exaone4Attention",
        softmax=(0, 1, 2, 3),
        sliding=(0, 1, 2),
        config={**SMALL, "sliding_window": 4},
    ),
    "exaone_moe": Pico(
        model_type="exaone_moe",
        attention="ExaoneMoeAttention",
        softmax=(0, 1, 2, 3),
        sliding=(0, 1, 2),
        config={**SMALL, **MOE, "sliding_window": 4},
    ),
    "seed_oss": Pico(
        model_type="seed_oss",
        attention="SeedOssAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16},
    ),
    "ernie4_5": Pico(
        model_type="ernie4_5",
        attention="Ernie4_5Attention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16, "use_bias": True},
    ),
    "ernie4_5_moe": Pico(
        model_type="ernie4_5_moe",
        attention="Ernie4_5_MoeAttention",
        softmax=(0, 1, 2, 3),
        config={
            **SMALL,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 16,
            "moe_num_shared_experts": 1,
        },
    ),
    "hunyuan_dense": Pico(
        model_type="hunyuan_v1_dense",
        attention="HunYuanDenseV1Attention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16},
    ),
    "hunyuan_moe": Pico(
        model_type="hunyuan_v1_moe",
        attention="HunYuanMoEV1Attention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16, "num_experts": 4, "moe_topk": 2},
    ),
    "starcoder2": Pico(
        model_type="starcoder2",
        attention="Starcoder2Attention",
        softmax=(0, 1, 2, 3),
        config=SMALL,
    ),
    "stablelm": Pico(
        model_type="stablelm",
        attention="StableLmAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "use_qkv_bias": True},
    ),
    "phi": Pico(
        model_type="phi",
        attention="PhiAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "qk_layernorm": True},
    ),
    "phimoe": Pico(
        model_type="phimoe",
        attention="PhimoeAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "attention_bias": True, **LOCAL_EXPERTS},
    ),
    "apertus": Pico(
        model_type="apertus", attention="ApertusAttention", softmax=(0, 1, 2, 3), config=SMALL
    ),
    "ministral": Pico(
        model_type="ministral",
        attention="MinistralAttention",
        softmax=(0, 1, 2, 3),
        sliding=(1, 2, 3),
        config={
            **SMALL,
            "head_dim": 16,
            "sliding_window": 4,
            "layer_types": ["full_attention"] + ["sliding_attention"] * 3,
        },
    ),
    "ministral3": Pico(
        model_type="ministral3",
        attention="Ministral3Attention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16},
    ),
    "nemotron": Pico(
        model_type="nemotron",
        attention="NemotronAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 16},
    ),
    "helium": Pico(
        model_type="helium",
        attention="HeliumAttention",
        softmax=(0, 1, 2, 3),
        config={**SMALL, "head_dim": 8},  # W_O is [hidden, hidden]
    ),
    "dots1": Pico(
        model_type="dots1",
        attention="Dots1Attention",
        softmax=(0, 1, 2, 3),
        sliding=(2, 3),
        config={
            **SMALL,
            **ROUTED_EXPERTS,
            "head_dim": 16,
            "sliding_window": 4,
            "max_window_layers": 2,
        },
    ),
    "cwm": Pico(
        model_type="cwm",
        attention="CwmAttention",
        softmax=(0, 1, 2, 3),
        sliding=(1, 2, 3),
        config={**SMALL, "head_dim": 16, "sliding_window": 4},
    ),
    "afmoe": Pico(
        model_type="afmoe",
        attention="AfmoeAttention",
        softmax=(0, 1, 2, 3),
        sliding=(0, 1, 2),
        config={**SMALL, **MOE, "head_dim": 16, "sliding_window": 4},
    ),
    "llama4": Pico(
        model_type="llama4_text",
        attention="Llama4TextAttention",
        softmax=(0, 1, 2, 3),
        sliding=(0, 2),
        config={
            **SMALL,
            **LOCAL_EXPERTS,
            "head_dim": 16,
            "intermediate_size_mlp": 16,
            "attention_chunk_size": 4,
            "no_rope_layer_interval": 2,
        },
    ),
    "nemotron_h_omni": Pico(
        model_type="nemotron_h_omni",
        attention="NemotronHAttention",
        softmax=(2, 4),
        config={
            "text_config": {"model_type": "nemotron_h", **NEMOTRON_H},
            "vision_config": RADIO,
            "vision_hidden_size": 16,
            "projector_hidden_size": 16,
            "image_token_id": 5,
        },
        auto=AutoModelForImageTextToText,
    ),
}


def build(family: str, folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> None:
    """Save a checkpoint of random weights, every parameter (norms and biases too) its own."""
    pico = PICOS[family]
    if pico.model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {pico.model_type}")
    if family == "zamba2" and is_before("5.19"):
        pytest.skip("before 5.19, transformers numbers the adapters of zamba2 in another way")
    torch.manual_seed(seed)
    values = copy.deepcopy(dict(pico.config))  # configs write into the dicts that they are given
    model = pico.auto.from_config(AutoConfig.for_model(pico.model_type, **values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * _noise(name, parameter))
    model.to(dtype).save_pretrained(folder)


def _noise(name: str, parameter: torch.Tensor) -> float:
    # Wide enough projections that attention is not uniform; little for the poles of an SSM.
    return 0.3 if re.search(r"\.(q_proj|k_proj|qkv_proj|query_key_value)\.", name) else 0.05


def load(family: str, folder: Path) -> PreTrainedModel:
    """Load a checkpoint in float32 with eager attention, which returns its weights."""
    return (
        PICOS[family]
        .auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        .eval()
    )


def attention_modules(model: PreTrainedModel, family: str) -> dict[int, torch.nn.Module]:
    """Return the softmax attention modules by layer, found by their class."""
    return {
        int(re.findall(r"layers\.(\d+)\.", name)[0]): module
        for name, module in model.named_modules()
        if type(module).__name__ == PICOS[family].attention
    }


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """The arguments one attention module was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


def attention_calls(
    model: PreTrainedModel, family: str, input_ids: torch.Tensor
) -> dict[int, AttentionCall]:
    """Run a forward pass and return what each softmax attention module was given, by layer."""
    calls: dict[int, AttentionCall] = {}

    def recorder(layer: int) -> Callable[..., None]:
        def record(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[layer] = AttentionCall(args=args, kwargs=kwargs)

        return record

    handles = [
        module.register_forward_pre_hook(recorder(layer), with_kwargs=True)
        for layer, module in attention_modules(model, family).items()
    ]
    try:
        with torch.no_grad():
            model(input_ids=input_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@dataclass(frozen=True, kw_only=True)
class AttentionResult:
    """What an attention module made of a call: [batch, query, hidden] and [batch, head, q, k]."""

    output: torch.Tensor
    weights: torch.Tensor


def replay(
    model: PreTrainedModel, family: str, calls: Mapping[int, AttentionCall]
) -> dict[int, AttentionResult]:
    """Call the softmax attention modules of `model` with recorded inputs, by layer.

    Two checkpoints replayed on the same calls differ only by their own attention weights.
    """
    modules = attention_modules(model, family)
    results = {}
    with torch.no_grad():
        for layer, call in calls.items():
            output, weights = modules[layer](*call.args, **call.kwargs)[:2]
            results[layer] = AttentionResult(output=output, weights=weights)
    return results


def prompt(length: int = 12) -> torch.Tensor:
    """Return the token ids the tests run on."""
    return torch.arange(length).mul(7).remainder(VOCAB - 10).add(10).unsqueeze(0)
