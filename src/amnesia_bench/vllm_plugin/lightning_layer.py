"""The linear layers of HypeNet in vLLM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

from amnesia_bench.modeling.lightning_attention import alibi_log_decay, lightning_attention
from amnesia_bench.modeling.mixers import HypeNetRMSNorm
from amnesia_bench.modeling.rotary import rotate

from .inputs import LayerInputs
from .lightning_decode import DecodeInputs, torch_decode, triton_decode
from .sharding import SplitRMSNorm
from .state_layer import StateLayer, states_or_zeros
from .step_metadata import StepMetadata


def lightning_state_shape(config: Any, ranks: int) -> tuple[int, int, int]:
    """Return the shape of a state [H, K, V] on one of the tensor-parallel ranks."""
    return config.lightning_nh // ranks, config.lightning_head_dim, config.lightning_head_dim


class VllmLightningLayer(StateLayer):
    """Lightning attention; see `LightningMixer` of `modeling`.

    Projections, norms and the gate are part of vLLM's compiled graphs. Only the update of the
    states is not, since it depends on the requests of a step.
    """

    log_decay: Tensor

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        quant, ranks = vllm_config.quant_config, get_tensor_model_parallel_world_size()
        heads, kv_heads = config.lightning_nh, config.lightning_nkv
        self.head_dim = dim = config.lightning_head_dim
        self.scale = config.lightning_scale_value
        self.state_shape = lightning_state_shape(config, ranks)
        local_heads, local_kv_heads = heads // ranks, max(1, kv_heads // ranks)
        self.groups = local_heads // local_kv_heads
        self.sizes = [n * dim for n in (local_heads, local_kv_heads, local_kv_heads)]
        size, bias, eps = config.hidden_size, config.attention_bias, config.rms_norm_eps
        self.qkv_proj = QKVParallelLinear(
            size, dim, heads, kv_heads, bias, quant_config=quant, prefix=f"{prefix}.qkv_proj"
        )
        self.z_proj = None
        if config.lightning_use_output_gate:
            self.z_proj = ColumnParallelLinear(
                size, heads * dim, bias, quant_config=quant, prefix=f"{prefix}.z_proj"
            )
        self.o_proj = RowParallelLinear(
            heads * dim, size, bias, quant_config=quant, prefix=f"{prefix}.o_proj"
        )
        qk_norm = config.lightning_use_qk_norm
        self.q_norm = HypeNetRMSNorm(dim, eps) if qk_norm else nn.Identity()
        self.k_norm = HypeNetRMSNorm(dim, eps) if qk_norm else nn.Identity()
        output_norm = config.lightning_use_output_norm
        self.o_norm = SplitRMSNorm(heads * dim, eps) if output_norm else nn.Identity()
        first = get_tensor_model_parallel_rank() * local_heads
        log_decay = alibi_log_decay(heads)[first : first + local_heads].clone()
        self.register_buffer("log_decay", log_decay, persistent=False)
        self.connect(prefix)

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the states of a request."""
        return (self.state_shape,)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Return their dtypes: float32, whatever the dtype of the model is."""
        return (torch.float32,)

    def forward(self, x: Tensor, inputs: LayerInputs) -> Tensor:
        """Mix hidden states [T, M]; return [T, M]."""
        q, k, v = self.qkv_proj(x)[0].split(self.sizes, dim=-1)
        heads = (-1, self.head_dim)
        q, k = self.q_norm(q.unflatten(-1, heads)), self.k_norm(k.unflatten(-1, heads))
        if inputs.linear_rotation is not None:
            q, k = (rotate(part[None], inputs.linear_rotation)[0] for part in (q, k))
        qkv = torch.cat([q.flatten(1), k.flatten(1), v], dim=-1)
        output = self.mix(qkv, qkv.new_zeros(qkv.shape[0], self.sizes[0]), inputs.positions)
        output = self.o_norm(output)
        if self.z_proj is not None:
            output = output * torch.sigmoid(self.z_proj(x)[0])
        mixed: Tensor = self.o_proj(output)[0]
        return mixed

    def mix_step(self, x: Tensor, output: Tensor, step: StepMetadata) -> None:
        """Write the outputs [T, H * V] for q, k and v [T, (H + 2 G) * K], and update the states."""
        q, k, v = self._heads(x)
        output = output.unflatten(-1, (-1, self.head_dim))
        decodes = step.num_decode_tokens
        if decodes:
            decode = triton_decode if x.is_cuda else torch_decode
            inputs = DecodeInputs(
                q[:decodes],
                k[:decodes],
                v[:decodes],
                self.log_decay,
                step.decode_slots,
                step.decode_is_first,
            )
            decode(inputs, self.scale, self.kv_cache[0], output[:decodes])
        if step.prefills is not None:
            cache, slots = self.kv_cache[0], step.prefill_slots
            states = states_or_zeros(cache, slots, step.prefill_is_first)
            mixed, cache[slots] = self._attend(
                (q[decodes:], k[decodes:], v[decodes:]), states, step
            )
            output[decodes:] = mixed

    def mix_alone(self, x: Tensor, output: Tensor) -> None:
        """Write the outputs of tokens that are one request without a state."""
        output.copy_(self._attend(self._heads(x), None, None)[0].flatten(1))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in x.split(self.sizes, dim=-1))
        return q, k, v

    def _attend(
        self, qkv: tuple[Tensor, Tensor, Tensor], states: Tensor | None, step: StepMetadata | None
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs [T, H, V] and the states after the last token of each request."""
        q, k, v = (x[None] for x in qkv)
        if self.groups > 1:
            k, v = (x.repeat_interleave(self.groups, dim=2) for x in (k, v))
        output, states = lightning_attention(
            q, k, v, self.log_decay, self.scale, states, None if step is None else step.prefills
        )
        return output[0], states
