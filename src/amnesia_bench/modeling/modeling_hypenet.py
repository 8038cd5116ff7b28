"""HypeNet for transformers 5: a causal LM with softmax layers and linear (lightning) layers.

The classes load and save official checkpoints, with the parameter names and config keys of
thunlp/hybrid-linear-attention @229e301. Source of the architecture: arXiv 2601.22156.

Shapes: B batch, T new tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_hypenet import HypeNetConfig
from .decoder_layer import HypeNetDecoderLayer
from .hybrid_model import HybridForCausalLM, HybridModel, HybridPreTrainedModel
from .lightning_attention import alibi_log_decay
from .mixers import LightningMixer
from .rotary import HypeNetRotaryEmbedding


class HypeNetPreTrainedModel(HybridPreTrainedModel):
    """The base class: loading, initialisation, and the attributes that transformers requires."""

    config: HypeNetConfig

    config_class = HypeNetConfig
    _no_split_modules = ["HypeNetDecoderLayer"]  # noqa: RUF012 - transformers' interface
    _can_record_outputs = {"hidden_states": HypeNetDecoderLayer}  # noqa: RUF012 - same
    _shape_keys = (
        "mixer_types, head counts, tie_word_embeddings and the lightning_use_* and attn_use_* "
        "switches"
    )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Checkpoints contain neither the rotary frequencies, which super() sets, nor the decays.
        super()._init_weights(module)
        if isinstance(module, LightningMixer):
            init.copy_(module.log_decay, alibi_log_decay(module.num_heads))


class HypeNetModel(HypeNetPreTrainedModel, HybridModel):
    """The model without its head: embeddings, decoder layers and the final norm."""

    layer_class = HypeNetDecoderLayer

    @staticmethod
    def rotary_embeddings(config: Any) -> tuple[HypeNetRotaryEmbedding | None, ...]:
        dims = (
            config.head_dim if config.attn_use_rope else None,
            config.lightning_head_dim if config.lightning_use_rope else None,
        )
        return tuple(None if dim is None else HypeNetRotaryEmbedding(config, dim) for dim in dims)

    def _query_scale(self, positions: Tensor) -> Tensor | None:
        a, constant = self.config.attn_logit_scale_a, self.config.attn_logit_multiplier
        if a is not None:
            scale = (positions.float() + a).log() / math.log(a)
            return scale[:, :, None, None]
        if constant is not None:
            return torch.full((1, 1, 1, 1), constant, device=positions.device)
        return None


class HypeNetForCausalLM(HypeNetPreTrainedModel, HybridForCausalLM):
    """HypeNet with a language-model head, whose weights may be tied to the embeddings."""

    model_class = HypeNetModel
