"""Which requests a forward pass of linear layers contains, and which of their states it reads.

vLLM sorts the requests of a step: first those with one new token (decodes), then those with more
(prefills). A state belongs to a slot of vLLM's cache, which may still contain the state of another
request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backends.linear_attn import (
    BailingLinearAttentionBackend,
    BailingLinearAttentionMetadata,
    BailingLinearAttentionMetadataBuilder,
)

from amnesia_bench.modeling.packing import PackedRows


@dataclass
class StepMetadata(BailingLinearAttentionMetadata):
    """vLLM's metadata, and the boundaries of the prefills; both serve all layers of a step."""

    prefills: PackedRows | None = None  # the tokens of each prefill, counted from the first one

    @property
    def num_tokens(self) -> int:
        """The number of tokens, without those that only fill up a CUDA graph."""
        count: int = self.num_decode_tokens + self.num_prefill_tokens
        return count

    @property
    def decode_slots(self) -> Tensor:
        """The slot of each decode [N]; negative for one that only fills up a CUDA graph."""
        slots: Tensor = self.state_indices_tensor[: self.num_decodes]
        return slots

    @property
    def decode_is_first(self) -> Tensor:
        """Whether each decode [N] is the first token of its request, which has no state yet.

        vLLM counts a prompt of one token as a decode, and clears no slot for it.
        """
        first: Tensor = self.seq_lens[: self.num_decodes] == 1
        return first

    @property
    def prefill_slots(self) -> Tensor:
        """The slot of each prefill [N]."""
        slots: Tensor = self.state_indices_tensor[self._prefill_range].long()
        return slots

    @property
    def prefill_is_first(self) -> Tensor:
        """Whether each prefill [N] starts its request, so that it has no state yet."""
        assert self.prefills is not None
        lengths = self.prefills.cu_seqlens.diff()
        first: Tensor = self.seq_lens[self._prefill_range] == lengths
        return first

    @property
    def _prefill_range(self) -> slice:
        return slice(self.num_decodes, self.num_decodes + self.num_prefills)


class StepMetadataBuilder(BailingLinearAttentionMetadataBuilder):
    """Builds `StepMetadata`; the parent class allows CUDA graphs of whole decoding steps.

    The boundaries come from vLLM's copy in host memory, so no layer waits for the device.
    """

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any
    ) -> StepMetadata:
        """Build the metadata of a step; the arguments are those of vLLM."""
        step = StepMetadata(
            **vars(super().build(common_prefix_len, common_attn_metadata, *args, **kwargs))
        )
        if step.num_prefills:
            bounds = common_attn_metadata.query_start_loc_cpu[step._prefill_range.start :]
            bounds = bounds[: step.num_prefills + 1]
            step.prefills = PackedRows.from_bounds(
                tuple((bounds - bounds[0]).tolist()), common_attn_metadata.query_start_loc.device
            )
        return step


class StepBackend(BailingLinearAttentionBackend):
    """Tells vLLM to build `StepMetadata` for a layer."""

    @staticmethod
    def get_name() -> str:
        """Return the name for messages."""
        return "AMNESIA_LINEAR_ATTN"

    @staticmethod
    def get_builder_cls() -> type[StepMetadataBuilder]:
        """Return the builder of the metadata."""
        return StepMetadataBuilder


def current_step(layer_name: str) -> StepMetadata | None:
    """Return the metadata of the current step, or None while vLLM measures the use of memory."""
    metadata = get_forward_context().attn_metadata
    if metadata is None:
        return None
    step = metadata[layer_name]
    assert isinstance(step, StepMetadata)
    return step
