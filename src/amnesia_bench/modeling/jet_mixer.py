"""The linear token mixer of Jet-Nemotron, the JetBlock: a gated delta rule on convolved values.

    q, k = l2norm(silu(W x))      v = dynamic convolution of W_v x, with kernels generated from x
    g = -exp(A) softplus(W_a x + b)      rate = sigmoid(W_b x)
    y = o_proj(rmsnorm(delta rule(q, k, v, g, rate)) * silu(g_proj(x)))

There is no RoPE. Parameter names are those of NVlabs' checkpoints. Source: arXiv 2508.15884 and
NVlabs/Jet-Nemotron @94cbd12, jetai/modeling/hf/jet_block.py.

Shapes: B batch, T new tokens, M hidden size, H heads, K key dim, V value dim, C = H * V channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_jet_nemotron import JetNemotronConfig
from .dynamic_convolution import DynamicConvolution
from .gated_delta import gated_delta_rule
from .gated_delta_torch import DeltaInputs
from .mixers import HypeNetRMSNorm, MixerInputs
from .packing import PackedRows, PaddedRows
from .precision import precise_dtype

# Added to the squared length of q and k, as in fla's kernels.
_LENGTH_EPS = 1e-6
# The authors' ranges of random initial values, for exp(A) and for the step softplus(b).
_INITIAL_RATE = (1e-4, 16.0)
_INITIAL_STEP = (1e-3, 1e-1)


class JetRMSNorm(HypeNetRMSNorm):
    """The norm x / rms(x) * weight over the last dimension, computed in float32 or float64."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., size]; unlike in HypeNet, the weight comes before the rounding."""
        return self.precise(x).to(x.dtype)

    def precise(self, x: Tensor) -> Tensor:
        """Return the normalised x in float32, or float64 for float64."""
        precise = x if x.dtype == torch.float64 else x.float()
        normal = precise * torch.rsqrt(precise.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normal


class JetMixer(nn.Module):
    """A JetBlock."""

    def __init__(self, config: JetNemotronConfig, layer_idx: int) -> None:
        super().__init__()
        block, size = config.jet_block, config.hidden_size
        self.layer_idx = layer_idx
        self.num_heads, self.key_dim, self.value_dim = (
            block.num_heads,
            block.head_dim,
            block.value_dim,
        )
        keys = block.num_heads * block.head_dim
        self.q_proj = nn.Linear(size, keys, bias=False)
        self.k_proj = nn.Linear(size, keys, bias=False)
        self.v_proj = nn.Linear(size, block.width, bias=False)
        self.b_proj = nn.Linear(size, block.num_heads, bias=False)
        self.a_proj = nn.Linear(size, block.num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(block.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(block.num_heads))
        self.dynamic_conv1d = DynamicConvolution(
            size, block.width, block.conv_size, block.generator_dim
        )
        self.g_proj = nn.Linear(size, block.width, bias=False)
        self.o_norm = JetRMSNorm(block.value_dim, block.norm_eps)
        self.o_proj = nn.Linear(block.width, size, bias=False)

    @torch.no_grad()
    def initialize_decay(self) -> None:
        """Set A_log and dt_bias, unless a checkpoint contains them."""
        rate = torch.empty_like(self.A_log).uniform_(*_INITIAL_RATE)
        init.copy_(self.A_log, rate.log())
        low, high = (math.log(step) for step in _INITIAL_STEP)
        step = torch.empty_like(self.dt_bias).uniform_(low, high).exp()
        init.copy_(self.dt_bias, step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def forward(
        self, hidden_states: Tensor, inputs: MixerInputs, **_: object
    ) -> tuple[Tensor, None]:
        """Mix hidden states [B, T, M]; return [B, T, M], and None instead of attention weights."""
        state: Tensor | None = None
        tail: Tensor | None = None
        if inputs.cache is not None:
            layer: Any = inputs.cache.layers[self.layer_idx]
            state, tail = layer.states
        padding = inputs.layout.padding
        if padding is None:
            cached = inputs.cache is not None
            output, state, tail = self._mix(
                hidden_states, state, tail, inputs.layout.packed, need_state=cached
            )
        else:
            output, state, tail = self._mix_padded(hidden_states, state, tail, padding)
        if inputs.cache is not None and state is not None:
            inputs.cache.update_recurrent_state(
                state, self.layer_idx, num_tokens=hidden_states.shape[1], tail=tail
            )
        return output, None

    def _mix_padded(
        self, x: Tensor, state: Tensor | None, tail: Tensor | None, padding: PaddedRows
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, num_tokens = x.shape[:2]
        if state is None or tail is None:
            early, channels = self.dynamic_conv1d.taps - 1, self.num_heads * self.value_dim
            state = x.new_zeros(
                (batch, self.num_heads, self.key_dim, self.value_dim), dtype=precise_dtype(x.dtype)
            )
            tail = x.new_zeros(batch, early, channels)
        rows = padding.row_index
        if rows.numel() == 0:
            return torch.zeros_like(x), state, tail
        output, new_state, new_tail = self._mix(
            padding.gather(x), state[rows], tail[rows], padding.packed
        )
        assert new_state is not None
        return (
            padding.scatter(output, batch, num_tokens),
            state.index_copy(0, rows, new_state),
            tail.index_copy(0, rows, new_tail),
        )

    def _mix(
        self,
        x: Tensor,
        state: Tensor | None,
        tail: Tensor | None,
        packed: PackedRows | None,
        *,
        need_state: bool = True,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        heads = (self.num_heads, -1)
        q, k = (
            _unit_length(nn.functional.silu(projection(x)).unflatten(-1, heads))
            for projection in (self.q_proj, self.k_proj)
        )
        v, tail = self.dynamic_conv1d(x, self.v_proj(x), tail, packed)
        precise = precise_dtype(x.dtype)
        step = nn.functional.softplus(self.a_proj(x).to(precise) + self.dt_bias)
        decay = -self.A_log.to(precise).exp() * step
        rate = torch.sigmoid(self.b_proj(x))
        output, state = gated_delta_rule(
            DeltaInputs(q, k, v.unflatten(-1, heads), decay, rate),
            initial_state=state,
            cu_seqlens=packed,
            need_state=need_state,
        )
        gate = self.g_proj(x).unflatten(-1, heads).to(precise)
        output = (self.o_norm.precise(output) * nn.functional.silu(gate)).to(x.dtype)
        return self.o_proj(output.flatten(-2)), state, tail


def _unit_length(x: Tensor) -> Tensor:
    """Divide each head x [..., K] by its length, in float32 or float64."""
    precise = x.to(precise_dtype(x.dtype))
    return precise * torch.rsqrt(precise.square().sum(-1, keepdim=True) + _LENGTH_EPS)
