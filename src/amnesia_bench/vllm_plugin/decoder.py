"""The causal LM that HypeNet and Jet-Nemotron share in vLLM.

Shapes: T tokens of all requests of a step, M hidden size, E vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.model_executor.models.qwen2 import Qwen2MLP
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix

from amnesia_bench.modeling.input_errors import InvalidModelInputError
from amnesia_bench.modeling.mixers import HypeNetRMSNorm
from amnesia_bench.modeling.rotary import HypeNetRotaryEmbedding

from .inputs import LayerInputs
from .support import check_support

# The dimensions of the tokens in the arguments of `forward`, for torch.compile. vLLM could infer
# them, but only from annotations that are not text.
DYNAMIC_DIMS = {"input_ids": 0, "positions": 0, "intermediate_tensors": 0, "inputs_embeds": 0}
# Projections that vLLM computes as one: the name of each part on disk, and its place.
_FUSED = {
    "q_proj": ("qkv_proj", "q"),
    "k_proj": ("qkv_proj", "k"),
    "v_proj": ("qkv_proj", "v"),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}


class VllmDecoderLayer(nn.Module):
    """A mixer and an MLP, each with a norm before it and a residual connection."""

    def __init__(
        self, vllm_config: VllmConfig, prefix: str, mixer: nn.Module, norm: type[HypeNetRMSNorm]
    ) -> None:
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        self.self_attn = mixer
        self.mlp = Qwen2MLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.mlp",
        )
        self.input_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, inputs: LayerInputs) -> Tensor:
        """Return the hidden states [T, M]."""
        x = x + self.self_attn(self.input_layernorm(x), inputs)
        output: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return output


class VllmHybridModel(nn.Module, ABC):
    """The model without its head. A subclass says which mixers and which norm it has."""

    norm_class: ClassVar[type[HypeNetRMSNorm]]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        layers = []
        for index in range(config.num_hidden_layers):
            name = f"{prefix}.layers.{index}"
            mixer = self.mixer(vllm_config, index, f"{name}.self_attn")
            layers.append(VllmDecoderLayer(vllm_config, name, mixer, self.norm_class))
        self.layers = nn.ModuleList(layers)
        self.norm = self.norm_class(config.hidden_size, config.rms_norm_eps)
        self.softmax_rotary, self.linear_rotary = self.rotary_embeddings(config)

    @abstractmethod
    def mixer(self, vllm_config: VllmConfig, index: int, prefix: str) -> nn.Module:
        """Return the mixer of a layer."""

    @staticmethod
    @abstractmethod
    def rotary_embeddings(config: Any) -> tuple[HypeNetRotaryEmbedding | None, ...]:
        """Return those of softmax layers and of linear layers."""

    def query_scale(self, positions: Tensor) -> Tensor | None:
        """Return the factor on the queries of softmax layers [T, 1, 1], or None."""
        return None

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings [T, M] of token ids [T]."""
        embeddings: Tensor = self.embed_tokens(input_ids)
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return the final hidden states [T, M]; the arguments are those of vLLM."""
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        softmax, linear = (
            None if rotary is None else rotary(x, positions[None])
            for rotary in (self.softmax_rotary, self.linear_rotary)
        )
        inputs = LayerInputs(positions, softmax, linear, self.query_scale(positions))
        for layer in self.layers:
            x = layer(x, inputs)
        output: Tensor = self.norm(x)
        return output

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load tensors by their names on disk; return the names of the parameters.

        Raises:
            InvalidModelInputError: a tensor does not belong to the model.
        """
        parameters, loaded = dict(self.named_parameters()), set()
        for name, weight in weights:
            head, _, kind = name.rpartition(".")
            parent, _, part = head.rpartition(".")
            fused, place = _FUSED.get(part, (part, None))
            target = f"{parent}.{fused}.{kind}"
            if target not in parameters:
                # The linear layers of Jet-Nemotron keep their projections apart.
                target, place = name, None
            if target not in parameters:
                raise InvalidModelInputError(
                    f"tensor {name} is not part of the model that config.json describes",
                    hint="vLLM loads every safetensors file of the folder: move others elsewhere.",
                )
            parameter = parameters[target]
            load = getattr(parameter, "weight_loader", default_weight_loader)
            load(parameter, weight, *([] if place is None else [place]))
            loaded.add(target)
        return loaded


class VllmHybridForCausalLM(nn.Module, HasInnerState, IsHybrid):
    """The model with its head, in the form that vLLM expects of a hybrid model."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    model_class: ClassVar[type[VllmHybridModel]]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = self.config = vllm_config.model_config.hf_config
        check_support(config, vllm_config.parallel_config.tensor_parallel_size)
        if vllm_config.speculative_config is not None:
            raise InvalidModelInputError(
                f"{config.model_type} models do not support speculative decoding",
                hint="Leave speculative_config out.",
            )
        self.model = self.model_class(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "lm_head")
        )
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings [T, M] of token ids [T]."""
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return the final hidden states [T, M]."""
        output: Tensor = self.model(input_ids, positions, intermediate_tensors, inputs_embeds)
        return output

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return the logits [T, E]; None on ranks other than the first."""
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the tensors of a checkpoint; return the names of the parameters."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights)
        return loaded
