"""HypeNet in vLLM, with the parameter names of official checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFuncCalculator

from amnesia_bench.modeling.mixers import HypeNetRMSNorm
from amnesia_bench.modeling.modeling_hypenet import HypeNetModel
from amnesia_bench.modeling.rotary import HypeNetRotaryEmbedding

from .decoder import DYNAMIC_DIMS, VllmHybridForCausalLM, VllmHybridModel
from .lightning_layer import VllmLightningLayer, lightning_state_shape
from .softmax_layer import VllmSoftmaxLayer


@support_torch_compile(dynamic_arg_dims=DYNAMIC_DIMS)
class VllmHypeNetModel(VllmHybridModel):
    """HypeNet without its head."""

    norm_class = HypeNetRMSNorm

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config: Any = vllm_config.model_config.hf_config
        self.a, self.multiplier = config.attn_logit_scale_a, config.attn_logit_multiplier

    def mixer(self, vllm_config: VllmConfig, index: int, prefix: str) -> nn.Module:
        config: Any = vllm_config.model_config.hf_config
        if config.layer_types[index] == "linear_attention":
            return VllmLightningLayer(vllm_config, prefix)
        return VllmSoftmaxLayer(vllm_config, prefix, window=None)

    @staticmethod
    def rotary_embeddings(config: Any) -> tuple[HypeNetRotaryEmbedding | None, ...]:
        return HypeNetModel.rotary_embeddings(config)

    def query_scale(self, positions: Tensor) -> Tensor | None:
        if self.a is not None:
            scale: Tensor = (positions.float() + self.a).log() / math.log(self.a)
            return scale[:, None, None]
        if self.multiplier is not None:
            return torch.full((1, 1, 1), self.multiplier, device=positions.device)
        return None


class VllmHypeNetForCausalLM(VllmHybridForCausalLM):
    """HypeNet with its head."""

    model_class = VllmHypeNetModel

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[Any, ...]:
        """Return the shapes of the states of a request in one linear layer."""
        config: Any = vllm_config.model_config.hf_config
        ranks: int = vllm_config.parallel_config.tensor_parallel_size
        return (lightning_state_shape(config, ranks),)

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        """Return their dtypes: float32, whatever vLLM's options say."""
        return (torch.float32,)

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[Any, ...]:
        """Return how vLLM copies the states of a cached prefix: as they are."""
        copies: tuple[Any, ...] = MambaStateCopyFuncCalculator.linear_attention_state_copy_func()
        return copies
