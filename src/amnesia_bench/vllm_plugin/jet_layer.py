"""The linear layers of Jet-Nemotron in vLLM."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.utils import set_weight_attrs

from amnesia_bench.modeling.dynamic_convolution import DynamicConvolution
from amnesia_bench.modeling.jet_mixer import JetMixer

from .inputs import LayerInputs
from .sharding import load_part
from .state_layer import StateLayer, states_or_zeros
from .step_metadata import StepMetadata

# The parameters of which each rank has the rows of its heads; the last one has columns instead.
_BY_ROWS = (
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "b_proj.weight",
    "a_proj.weight",
    "g_proj.weight",
    "A_log",
    "dt_bias",
    "dynamic_conv1d.kernel_generator.w2.weight",
    "dynamic_conv1d.kernel_generator.w2.bias",
)
_BY_COLUMNS = "o_proj.weight"


def jet_state_shapes(config: Any, ranks: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes on one rank: earlier values [R, C] and the state [H, K, V]."""
    block = config.jet_block
    heads = block.num_heads // ranks
    return (block.conv_size - 1, heads * block.value_dim), (heads, block.head_dim, block.value_dim)


class VllmJetLayer(JetMixer, StateLayer):
    """A JetBlock with the heads of one tensor-parallel rank; see `JetMixer` of `modeling`."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        config: Any = vllm_config.model_config.hf_config
        ranks, block = get_tensor_model_parallel_world_size(), config.jet_block
        local = copy.copy(config)
        jet = {**config.efficient_attention_config["jet"], "num_heads": block.num_heads // ranks}
        local.efficient_attention_config = {**config.efficient_attention_config, "jet": jet}
        super().__init__(local, layer_idx=0)
        # The inner width of the generator does not depend on the number of ranks.
        self.dynamic_conv1d = DynamicConvolution(
            config.hidden_size, block.width // ranks, block.conv_size, block.generator_dim
        )
        for name in _BY_ROWS:
            set_weight_attrs(self.get_parameter(name), {"weight_loader": load_part(0)})
        set_weight_attrs(self.get_parameter(_BY_COLUMNS), {"weight_loader": load_part(1)})
        self.ranks = ranks
        self.state_shapes = jet_state_shapes(config, ranks)
        self.state_dtypes = (vllm_config.model_config.dtype, torch.float32)
        self.connect(prefix)

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the states of a request."""
        return self.state_shapes

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Return their dtypes: the model's for earlier values, and float32 for the state."""
        return self.state_dtypes

    def forward(self, x: Tensor, inputs: LayerInputs) -> Tensor:  # type: ignore[override]
        """Mix hidden states [T, M]; return [T, M]."""
        output = self.mix(x, torch.zeros_like(x), inputs.positions)
        return output if self.ranks == 1 else tensor_model_parallel_all_reduce(output)

    def mix_step(self, x: Tensor, output: Tensor, step: StepMetadata) -> None:
        """Write the outputs [T, M] of hidden states [T, M], and update the states."""
        decodes = step.num_decode_tokens
        if decodes:
            # Requests that only fill up a CUDA graph use slot 0, which vLLM gives to no request.
            slots = step.decode_slots.clamp(min=0).long()
            mixed = self._mix_requests(x[:decodes, None], slots, step.decode_is_first, None)
            output[:decodes] = mixed[:, 0]
        if step.prefills is not None:
            mixed = self._mix_requests(
                x[None, decodes:], step.prefill_slots, step.prefill_is_first, step
            )
            output[decodes:] = mixed[0]

    def mix_alone(self, x: Tensor, output: Tensor) -> None:
        """Write the outputs of tokens that are one request without a state."""
        output.copy_(self._mix(x[None], None, None, None)[0][0])

    def _mix_requests(
        self, x: Tensor, slots: Tensor, is_first: Tensor, step: StepMetadata | None
    ) -> Tensor:
        tails, states = self.kv_cache
        mixed, state, tail = self._mix(
            x,
            states_or_zeros(states, slots, is_first),
            states_or_zeros(tails, slots, is_first),
            None if step is None else step.prefills,
        )
        assert state is not None
        states[slots], tails[slots] = state, tail
        return mixed
