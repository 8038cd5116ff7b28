"""Jet-Nemotron in vLLM, with the parameter names of NVlabs' checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.mamba.mamba_utils import get_temporal_copy_spec

from amnesia_bench.modeling.jet_mixer import JetRMSNorm
from amnesia_bench.modeling.modeling_jet_nemotron import JetNemotronModel
from amnesia_bench.modeling.rotary import HypeNetRotaryEmbedding

from .decoder import DYNAMIC_DIMS, VllmHybridForCausalLM, VllmHybridModel
from .jet_layer import VllmJetLayer, jet_state_shapes
from .softmax_layer import VllmSoftmaxLayer


@support_torch_compile(dynamic_arg_dims=DYNAMIC_DIMS)
class VllmJetNemotronModel(VllmHybridModel):
    """Jet-Nemotron without its head."""

    norm_class = JetRMSNorm

    def mixer(self, vllm_config: VllmConfig, index: int, prefix: str) -> nn.Module:
        config: Any = vllm_config.model_config.hf_config
        kind = config.layer_types[index]
        if kind == "linear_attention":
            return VllmJetLayer(vllm_config, prefix)
        window = config.window_size if kind == "sliding_attention" else None
        return VllmSoftmaxLayer(vllm_config, prefix, window)

    @staticmethod
    def rotary_embeddings(config: Any) -> tuple[HypeNetRotaryEmbedding | None, ...]:
        return JetNemotronModel.rotary_embeddings(config)


class VllmJetNemotronForCausalLM(VllmHybridForCausalLM):
    """Jet-Nemotron with its head."""

    model_class = VllmJetNemotronModel

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[Any, ...]:
        """Return the shapes of the states of a request in one linear layer."""
        config: Any = vllm_config.model_config.hf_config
        ranks: int = vllm_config.parallel_config.tensor_parallel_size
        return jet_state_shapes(config, ranks)

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        """Return their dtypes: the model's for earlier values, and float32 for the state."""
        return vllm_config.model_config.dtype, torch.float32

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[Any, ...]:
        """Return how vLLM copies the states of a cached prefix: as they are."""
        return get_temporal_copy_spec, get_temporal_copy_spec
