"""The softmax layers of HypeNet and Jet-Nemotron in vLLM's paged attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

from amnesia_bench.modeling.mixers import HypeNetRMSNorm
from amnesia_bench.modeling.rotary import rotate

from .inputs import LayerInputs


class VllmSoftmaxLayer(nn.Module):
    """Causal softmax attention; see `SoftmaxMixer` and `SlidingMixer` of `modeling`.

    Args:
        vllm_config: the settings of vLLM, with the model's config.
        prefix: the name of the layer's parameters, and of its keys and values in the cache.
        window: the number of tokens that a token attends to, including itself; None for all.
    """

    def __init__(self, vllm_config: VllmConfig, prefix: str, window: int | None) -> None:
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        quant, ranks = vllm_config.quant_config, get_tensor_model_parallel_world_size()
        self.head_dim = dim = config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        local_heads, local_kv_heads = heads // ranks, max(1, kv_heads // ranks)
        self.sizes = [n * dim for n in (local_heads, local_kv_heads, local_kv_heads)]
        size, (bias, output_bias) = config.hidden_size, config.softmax_biases
        self.qkv_proj = QKVParallelLinear(
            size, dim, heads, kv_heads, bias, quant_config=quant, prefix=f"{prefix}.qkv_proj"
        )
        self.o_gate = None
        if config.attn_use_output_gate:
            self.o_gate = ColumnParallelLinear(
                size, heads * dim, bias=False, quant_config=quant, prefix=f"{prefix}.o_gate"
            )
        self.o_proj = RowParallelLinear(
            heads * dim, size, output_bias, quant_config=quant, prefix=f"{prefix}.o_proj"
        )
        norm, eps = config.softmax_qk_norm, config.rms_norm_eps
        self.q_norm = HypeNetRMSNorm(dim, eps) if norm else nn.Identity()
        self.k_norm = HypeNetRMSNorm(dim, eps) if norm else nn.Identity()
        self.attn = Attention(
            local_heads,
            dim,
            dim**-0.5,
            num_kv_heads=local_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            per_layer_sliding_window=window,
            prefix=f"{prefix}.attn",
        )

    def forward(self, x: Tensor, inputs: LayerInputs) -> Tensor:
        """Mix hidden states [T, M]; return [T, M]."""
        q, k, v = self.qkv_proj(x)[0].split(self.sizes, dim=-1)
        heads = (-1, self.head_dim)
        q, k = self.q_norm(q.unflatten(-1, heads)), self.k_norm(k.unflatten(-1, heads))
        if inputs.softmax_rotation is not None:
            q, k = (rotate(part[None], inputs.softmax_rotation)[0] for part in (q, k))
        if inputs.query_scale is not None:
            q = (q * inputs.query_scale).to(k.dtype)
        output = self.attn(q.flatten(1), k.flatten(1), v)
        if self.o_gate is not None:
            output = output * torch.sigmoid(self.o_gate(x)[0])
        mixed: Tensor = self.o_proj(output)[0]
        return mixed
