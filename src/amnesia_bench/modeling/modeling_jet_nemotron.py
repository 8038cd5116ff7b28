"""Jet-Nemotron for transformers 5: a causal LM with softmax, sliding-window and JetBlock layers.

The classes load and save NVlabs' checkpoints without the code that comes with them, with the
parameter names and config keys of NVlabs/Jet-Nemotron @94cbd12. Source of the architecture: arXiv
2508.15884.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .configuration_jet_nemotron import JetNemotronConfig
from .decoder_layer import JetNemotronDecoderLayer
from .hybrid_model import HybridForCausalLM, HybridModel, HybridPreTrainedModel
from .jet_mixer import JetMixer
from .rotary import HypeNetRotaryEmbedding


class JetNemotronPreTrainedModel(HybridPreTrainedModel):
    """The base class: loading, initialisation, and the attributes that transformers requires."""

    config: JetNemotronConfig

    config_class = JetNemotronConfig
    _no_split_modules = ["JetNemotronDecoderLayer"]  # noqa: RUF012 - transformers' interface
    _can_record_outputs = {"hidden_states": JetNemotronDecoderLayer}  # noqa: RUF012 - same
    _shape_keys = "layer_types, head counts, tie_word_embeddings and efficient_attention_config"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, JetMixer):
            module.initialize_decay()


class JetNemotronModel(JetNemotronPreTrainedModel, HybridModel):
    """The model without its head: embeddings, decoder layers and the final norm."""

    layer_class = JetNemotronDecoderLayer

    @staticmethod
    def rotary_embeddings(config: Any) -> tuple[HypeNetRotaryEmbedding | None, ...]:
        # Full and sliding-window layers rotate alike; JetBlocks do not rotate.
        return HypeNetRotaryEmbedding(config, config.head_dim), None


class JetNemotronForCausalLM(JetNemotronPreTrainedModel, HybridForCausalLM):
    """Jet-Nemotron with a language-model head, whose weights may be tied to the embeddings."""

    model_class = JetNemotronModel
