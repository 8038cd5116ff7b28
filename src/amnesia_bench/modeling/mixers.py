"""The token mixers of HypeNet: softmax attention and lightning attention, each with a gate.

    softmax:   y = o_proj(softmax(s_t d^-1/2 q k^T) v * sigmoid(o_gate(x)))
    lightning: y = o_proj(o_norm(LA(q, k, v)) * sigmoid(z_proj(x)))

Here q and k are normalised per head. Lightning layers use RoPE, and softmax layers do not (HyPE,
arXiv 2601.22156). Parameter names are those of official checkpoints.

Shapes: B batch, T new tokens, L all tokens (cached + new), H query heads, G key/value heads,
D head dim, M hidden size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    sliding_window_causal_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .causal_attention import CAUSAL_SDPA, causal_sdpa, packed_sdpa
from .configuration_hypenet import HypeNetConfig
from .hybrid_config import HybridConfig
from .lightning_attention import alibi_log_decay, lightning_attention
from .packing import PackedRows
from .rotary import rotate
from .sliding_attention import SlidingWindow, additive_mask, attend_in_window
from .token_layout import TokenLayout


@dataclass(frozen=True)
class MixerInputs:
    """The inputs that all layers of one forward pass share."""

    layout: TokenLayout
    cache: Cache | None
    softmax_rotation: tuple[Tensor, Tensor] | None  # cos, sin [B, T, D]
    lightning_rotation: tuple[Tensor, Tensor] | None
    query_scale: Tensor | None  # [B or 1, T, 1, 1]: ln(t + a) / ln(a), or a constant
    softmax_mask: Tensor | None  # in the format that the attention implementation expects
    want_weights: bool
    window: SlidingWindow | None = None  # None in a model without sliding-window layers

    def to(self, device: torch.device | str | int, **kwargs: Any) -> MixerInputs:
        """Return a copy on a device. The cache is not moved: its layers are on the mixers' devices.

        accelerate calls this method before each layer of a model that `device_map` distributes.
        """
        moved_inputs: MixerInputs = _moved(self, device, **kwargs)
        return moved_inputs


def _moved(value: Any, device: torch.device | str | int, **kwargs: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, **kwargs)
    if isinstance(value, tuple):
        return tuple(_moved(item, device, **kwargs) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {
            field.name: _moved(getattr(value, field.name), device, **kwargs)
            for field in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changes)
    return value


class HypeNetRMSNorm(nn.Module):
    """The norm x / rms(x) * weight over the last dimension, with rms in float32 or float64."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., size]; it is rounded to x's dtype before the weight, as in training."""
        precise = x if x.dtype == torch.float64 else x.float()
        precise = precise * torch.rsqrt(precise.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * precise.to(x.dtype)


def eager_attention(  # noqa: PLR0913 - transformers' attention interface
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Compute softmax attention with plain matrix products, and return its weights as well.

    Args:
        module: the calling mixer.
        query: queries [B, H, T, D].
        key: keys [B, G, L, D].
        value: values [B, G, L, D].
        attention_mask: additive mask [B, 1, T, L], or None for no mask.
        scaling: factor on the logits.
        dropout: dropout probability in training.

    Returns:
        The output [B, T, H, D] and the attention weights [B, H, T, L] after softmax and dropout.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    logits = (query @ key.mT) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    weights = logits.softmax(dim=-1, dtype=precise).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SoftmaxMixer(nn.Module):
    """Causal softmax attention with grouped key/value heads and an optional output gate."""

    def __init__(self, config: HybridConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        assert config.num_key_value_heads is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True  # transformers' attention functions use this attribute
        wide, narrow = (
            heads * config.head_dim
            for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        bias, output_bias = config.softmax_biases
        self.q_proj = nn.Linear(config.hidden_size, wide, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, narrow, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, narrow, bias=bias)
        self.o_proj = nn.Linear(wide, config.hidden_size, bias=output_bias)
        head_dim, eps, norm = config.head_dim, config.rms_norm_eps, config.softmax_qk_norm
        self.q_norm = HypeNetRMSNorm(head_dim, eps) if norm else nn.Identity()
        self.k_norm = HypeNetRMSNorm(head_dim, eps) if norm else nn.Identity()
        self.o_gate = (
            nn.Linear(config.hidden_size, wide, bias=False) if config.attn_use_output_gate else None
        )

    def queries_and_keys(self, x: Tensor, inputs: MixerInputs) -> tuple[Tensor, Tensor]:
        """Return the queries [B, H, T, D], with the logit scale, and the new keys [B, G, T, D]."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q = self.q_norm(self.q_proj(x).view(heads))
        k = self.k_norm(self.k_proj(x).view(heads))
        if inputs.softmax_rotation is not None:
            q, k = rotate(q, inputs.softmax_rotation), rotate(k, inputs.softmax_rotation)
        if inputs.query_scale is not None:
            q = (q * inputs.query_scale).to(k.dtype)
        return q.transpose(1, 2), k.transpose(1, 2)

    def forward(
        self, hidden_states: Tensor, inputs: MixerInputs, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Mix hidden states [B, T, M]; return [B, T, M] and the weights [B, H, T, L] or None."""
        q, k = self.queries_and_keys(hidden_states, inputs)
        v = self.v_proj(hidden_states).view(*hidden_states.shape[:2], -1, self.head_dim)
        v = v.transpose(1, 2)
        if inputs.cache is not None:
            keep = 0 if inputs.window is None else inputs.window.keep
            k, v = inputs.cache.update(k, v, self.layer_idx, keep=keep)
        output, weights = self._attend((q, k, v), inputs, kwargs)
        output = output.reshape(*hidden_states.shape[:2], -1)
        if self.o_gate is not None:
            output = output * torch.sigmoid(self.o_gate(hidden_states))
        return self.o_proj(output), weights

    def _attend(
        self, qkv: tuple[Tensor, Tensor, Tensor], inputs: MixerInputs, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        name = "eager" if inputs.want_weights else self.config._attn_implementation
        attend = (
            causal_sdpa
            if name == "sdpa"
            else ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        )
        options = {
            **kwargs,
            "dropout": self.config.attention_dropout if self.training else 0.0,
            "scaling": self.scaling,
        }
        packed = inputs.layout.packed
        if packed is not None and name != "eager":
            if "flash" in str(name):
                options |= _flash_varlen(packed)
            else:
                return packed_sdpa(self, *qkv, None, packed=packed, **options)
        output, weights = attend(self, *qkv, inputs.softmax_mask, **options)
        return output, weights if inputs.want_weights else None


class SlidingMixer(SoftmaxMixer):
    """Softmax attention in which a token attends to itself and to W - 1 tokens before it."""

    def _attend(
        self, qkv: tuple[Tensor, Tensor, Tensor], inputs: MixerInputs, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        window, packed = inputs.window, inputs.layout.packed
        assert window is not None
        name = "eager" if inputs.want_weights else str(self.config._attn_implementation)
        flash = "flash" in name
        chosen = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        options = {
            **kwargs,
            "dropout": self.config.attention_dropout if self.training else 0.0,
            "scaling": self.scaling,
        }
        if flash:
            options |= {} if packed is None else _flash_varlen(packed)
            options["sliding_window"] = window.size
            return chosen(self, *qkv, window.padding_mask, **options)[0], None
        if inputs.want_weights:
            num_new, columns = qkv[0].shape[2], qkv[1].shape[2]
            allowed = window.mask(
                slice(0, num_new), slice(0, columns), columns - num_new, qkv[0].device
            )
            return eager_attention(self, *qkv, additive_mask(allowed, qkv[0].dtype), **options)
        if name not in ("eager", "sdpa", CAUSAL_SDPA):
            return chosen(self, *qkv, self._mask_of(name, qkv, window), **options)[0], None
        attend = eager_attention if name == "eager" else causal_sdpa
        return attend_in_window(
            functools.partial(attend, self, **options), qkv, window, additive=name == "eager"
        ), None

    def _mask_of(self, name: str, qkv: tuple[Tensor, Tensor, Tensor], window: SlidingWindow) -> Any:
        """Return the mask of the window in the format of another attention implementation."""
        num_new, columns = qkv[0].shape[2], qkv[1].shape[2]
        return ALL_MASK_ATTENTION_FUNCTIONS[name](
            batch_size=qkv[0].shape[0],
            q_length=num_new,
            kv_length=columns,
            q_offset=columns - num_new,
            mask_function=sliding_window_causal_mask_function(window.size),
            attention_mask=window.padding_mask,
            local_size=window.size,
            device=qkv[0].device,
        )


def _flash_varlen(packed: PackedRows) -> dict[str, Any]:
    return {
        "cu_seq_lens_q": packed.cu_seqlens,
        "cu_seq_lens_k": packed.cu_seqlens,
        "max_length_q": packed.longest,
        "max_length_k": packed.longest,
    }


class LightningMixer(nn.Module):
    """Lightning attention; norms on q and k and on the output, RoPE and a gate are optional."""

    log_decay: Tensor

    def __init__(self, config: HypeNetConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.lightning_nh is not None
        assert config.lightning_nkv is not None
        assert config.lightning_head_dim is not None
        self.layer_idx = layer_idx
        self.num_heads = config.lightning_nh
        self.num_key_value_groups = config.lightning_nh // config.lightning_nkv
        self.head_dim = config.lightning_head_dim
        self.scale = config.lightning_scale_value
        size, bias, eps = config.hidden_size, config.attention_bias, config.rms_norm_eps
        wide, narrow = (n * self.head_dim for n in (config.lightning_nh, config.lightning_nkv))
        self.q_proj = nn.Linear(size, wide, bias=bias)
        self.k_proj = nn.Linear(size, narrow, bias=bias)
        self.v_proj = nn.Linear(size, narrow, bias=bias)
        self.o_proj = nn.Linear(wide, size, bias=bias)
        qk_norm = config.lightning_use_qk_norm
        self.q_norm = HypeNetRMSNorm(self.head_dim, eps) if qk_norm else nn.Identity()
        self.k_norm = HypeNetRMSNorm(self.head_dim, eps) if qk_norm else nn.Identity()
        # The output norm is computed over all heads together, not per head.
        self.o_norm = (
            HypeNetRMSNorm(wide, eps) if config.lightning_use_output_norm else nn.Identity()
        )
        self.z_proj = nn.Linear(size, wide, bias=bias) if config.lightning_use_output_gate else None
        self.register_buffer("log_decay", alibi_log_decay(self.num_heads), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        if self.log_decay.dtype != torch.float32:
            # `.to(bfloat16)` changed the decays by up to 0.14 %, so they are computed again.
            self.log_decay = alibi_log_decay(self.num_heads).to(self.log_decay.device)
        return result

    def forward(
        self, hidden_states: Tensor, inputs: MixerInputs, **_: object
    ) -> tuple[Tensor, None]:
        """Mix hidden states [B, T, M]; return [B, T, M], and None instead of attention weights."""
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        q = self.q_norm(self.q_proj(hidden_states).view(heads))
        k = self.k_norm(self.k_proj(hidden_states).view(heads))
        v = self.v_proj(hidden_states).view(heads)
        if inputs.lightning_rotation is not None:
            q, k = rotate(q, inputs.lightning_rotation), rotate(k, inputs.lightning_rotation)
        if self.num_key_value_groups > 1:
            k, v = (x.repeat_interleave(self.num_key_value_groups, dim=2) for x in (k, v))
        state = None
        if inputs.cache is not None:
            # `Cache.get_recurrent_state` is not available before transformers 5.21.
            layer: Any = inputs.cache.layers[self.layer_idx]
            state = layer.state
        output, state = self._run((q, k, v), state, inputs.layout)
        if inputs.cache is not None:
            inputs.cache.update_recurrent_state(
                state, self.layer_idx, num_tokens=hidden_states.shape[1]
            )
        output = self.o_norm(output.flatten(2))
        if self.z_proj is not None:
            output = output * torch.sigmoid(self.z_proj(hidden_states))
        return self.o_proj(output), None

    def _state_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.num_heads, self.head_dim, self.head_dim

    def _run(
        self, qkv: tuple[Tensor, Tensor, Tensor], state: Tensor | None, layout: TokenLayout
    ) -> tuple[Tensor, Tensor]:
        if layout.padding is None:
            return lightning_attention(*qkv, self.log_decay, self.scale, state, layout.packed)
        padding = layout.padding
        batch, num_tokens = qkv[0].shape[:2]
        if padding.row_index.numel() == 0:
            state = qkv[0].new_zeros(self._state_shape(batch)) if state is None else state
            return torch.zeros_like(qkv[2]), state
        tokens = tuple(padding.gather(x) for x in qkv)
        rows = None if state is None else state[padding.row_index]
        valid_output, new_states = lightning_attention(
            tokens[0], tokens[1], tokens[2], self.log_decay, self.scale, rows, padding.packed
        )
        # The state of a row that contains only padding in this chunk of a prefill is unchanged.
        old_states = new_states.new_zeros(batch, *new_states.shape[1:]) if state is None else state
        return padding.scatter(valid_output, batch, num_tokens), old_states.index_copy(
            0, padding.row_index, new_states
        )
