"""Rotary position embedding in the half-split layout; frequencies are float32 for every dtype.

Shapes: B batch (or 1), T tokens, H heads, D head dim.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .hybrid_config import HybridConfig


class HypeNetRotaryEmbedding(nn.Module):
    """Computes the cosine and sine tables for positions, according to `config.rope_parameters`.

    The names of the class and its attributes follow transformers' convention: `_init_weights` of
    transformers recognises the module by them, and sets the frequencies, which no checkpoint
    contains.

    Args:
        config: the model's config.
        head_dim: the head dim to rotate, which may differ between linear and softmax layers.
    """

    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, config: HybridConfig, head_dim: int) -> None:
        super().__init__()
        # transformers' RoPE functions use the head dim of a config.
        self.config = copy.copy(config)
        self.config.head_dim = head_dim
        assert config.rope_parameters is not None
        self.rope_type: str = config.rope_parameters["rope_type"]
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        inv_freq, self.attention_scaling = self._frequencies()
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: HybridConfig, device: torch.device | None = None, **_: object
    ) -> tuple[Tensor, float]:
        """Return frequencies theta^(-2i/D), [D/2] in float32, and the factor 1 on cos and sin."""
        assert config.rope_parameters is not None
        assert config.head_dim is not None
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
        return 1.0 / config.rope_parameters["rope_theta"] ** (exponent / config.head_dim), 1.0

    def _frequencies(self) -> tuple[Tensor, float]:
        compute = self.compute_default_rope_parameters
        if self.rope_type != "default":
            compute = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, scaling = compute(self.config)
        return inv_freq, float(scaling)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        if self.inv_freq.dtype != torch.float32:
            # `.to(bfloat16)` rounded the frequencies, which causes an error of up to 0.3 rad at a
            # distance of 256 tokens, so they are computed again.
            exact = self._frequencies()[0].to(self.inv_freq.device)
            self.inv_freq, self.original_inv_freq = exact, exact.clone()
        return result

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines for positions [B, T], each [B, T, D] in the dtype of x."""
        angle = position_ids[..., None].to(torch.float32) * self.inv_freq.to(x.device)
        angle = torch.cat([angle, angle], dim=-1)
        cos, sin = angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair of channels (i, i + D/2) of the heads x [B, T, H, D]."""
    cos, sin = (part[:, :, None] for part in cos_sin)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
