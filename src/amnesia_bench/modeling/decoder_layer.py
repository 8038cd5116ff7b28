"""One decoder layer: a mixer and an MLP.

Shapes: B batch, T tokens, M hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .hybrid_config import HybridConfig
from .jet_mixer import JetMixer, JetRMSNorm
from .mixers import HypeNetRMSNorm, LightningMixer, MixerInputs, SlidingMixer, SoftmaxMixer


class GatedMLP(nn.Module):
    """The gated MLP down(act(gate(x)) * up(x))."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to hidden states [B, T, M]; return [B, T, M]."""
        output: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return output


class HybridDecoderLayer(GradientCheckpointingLayer):
    """A decoder layer: a mixer and an MLP, each with a norm before it and a residual connection."""

    linear_mixer: ClassVar[type[nn.Module]]
    norm: ClassVar[type[HypeNetRMSNorm]]

    def __init__(self, config: HybridConfig, layer_idx: int) -> None:
        super().__init__()
        mixers = {"full_attention": SoftmaxMixer, "sliding_attention": SlidingMixer}
        mixer = mixers.get(config.layer_types[layer_idx], self.linear_mixer)
        self.self_attn = mixer(config, layer_idx)
        self.mlp = GatedMLP(config)
        self.input_layernorm = self.norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = self.norm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden_states: Tensor, inputs: MixerInputs, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the hidden states [B, T, M] and the attention weights, or None.

        Only softmax layers return weights, and only if `inputs` requests them.
        """
        mixed, weights = self.self_attn(self.input_layernorm(hidden_states), inputs, **kwargs)
        hidden_states = hidden_states + mixed
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states, weights


class HypeNetDecoderLayer(HybridDecoderLayer):
    """A decoder layer of HypeNet."""

    linear_mixer = LightningMixer
    norm = HypeNetRMSNorm


class JetNemotronDecoderLayer(HybridDecoderLayer):
    """A decoder layer of Jet-Nemotron."""

    linear_mixer = JetMixer
    norm = JetRMSNorm
