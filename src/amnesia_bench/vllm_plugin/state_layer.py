"""A layer whose cache is a state of constant size per request, as vLLM sees it."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.mamba.abstract import MambaBase

# The import registers the op vllm::linear_attention, which calls the `_forward` of a layer. vLLM
# splits compiled graphs at this op.
from vllm.model_executor.layers.mamba.linear import minimax_linear_attn  # noqa: F401
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from .step_metadata import StepBackend, StepMetadata, current_step


class StateLayer(nn.Module, MambaBase):
    """Connects a layer with vLLM's cache of states, and with the requests of a step."""

    prefix: str
    kv_cache: tuple[Tensor, ...]

    def connect(self, prefix: str) -> None:
        """Make the layer known to vLLM under its name; call this once, at the end of __init__."""
        self.prefix = prefix
        layers = get_current_vllm_config().compilation_config.static_forward_context
        assert prefix not in layers, prefix
        layers[prefix] = self

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """The kind of state by which vLLM groups layers."""
        return MambaAttentionBackendEnum.LINEAR

    def get_attn_backend(self) -> type[StepBackend]:
        """Return the backend that builds the metadata of a step."""
        return StepBackend

    def mix(self, x: Tensor, output: Tensor, positions: Tensor) -> Tensor:
        """Call `mix_step` as an op, at which vLLM splits compiled graphs; return `output`.

        Args:
            x: the inputs of the tokens [T, ...].
            output: zeros [T, ...], which are overwritten.
            positions: the positions of the tokens [T], which the op of vLLM takes.
        """
        torch.ops.vllm.linear_attention(x, output, positions, self.prefix)
        return output

    def _forward(self, hidden_states: Tensor, output: Tensor, positions: Tensor) -> None:
        step = current_step(self.prefix)
        if step is None:
            self.mix_alone(hidden_states, output)
        else:
            # CUDA graphs may have more tokens than the requests of the step.
            self.mix_step(hidden_states[: step.num_tokens], output[: step.num_tokens], step)

    @abstractmethod
    def mix_step(self, x: Tensor, output: Tensor, step: StepMetadata) -> None:
        """Write the outputs of all tokens, and update the states of their requests."""

    @abstractmethod
    def mix_alone(self, x: Tensor, output: Tensor) -> None:
        """Compute all tokens as one request without a state, so that vLLM measures the memory."""


def states_or_zeros(cache: Tensor, slots: Tensor, is_first: Tensor) -> Tensor:
    """Return the states of the slots [N], with zeros for requests that have none yet."""
    states = cache[slots]
    has_none = is_first.view(-1, *[1] * (states.ndim - 1))
    return states.masked_fill(has_none, 0)
