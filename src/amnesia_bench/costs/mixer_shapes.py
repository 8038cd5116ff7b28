"""Sizes and FLOPs of the token mixers: softmax attention, lightning attention and JetBlock.

Shapes: M hidden size, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

_CHUNK_TOKENS = 64  # of the kernels for lightning attention


@dataclass(frozen=True, kw_only=True)
class SoftmaxMixerShape:
    """The shape of softmax attention with grouped queries.

    Attributes:
        gated: whether the mixer has an output gate.
        norms: whether queries and keys are normalised.
        biases: whether the query, key and value projections have biases.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    gated: bool = False
    norms: bool = False
    biases: bool = False

    @property
    def width(self) -> int:
        """The total width of all query heads."""
        return self.heads * self.head_dim

    @property
    def parameters(self) -> int:
        narrow = self.kv_heads * self.head_dim
        norms = 2 * self.head_dim if self.norms else 0
        biases = self.width + 2 * narrow if self.biases else 0
        return (
            self.hidden * (2 * self.width + 2 * narrow + self.gated * self.width) + norms + biases
        )

    @property
    def cached(self) -> int:
        """The number of values that the KV cache stores per token."""
        return 2 * self.kv_heads * self.head_dim

    def flops(self, visible_tokens: float) -> float:
        """Return the forward FLOPs per token of the attention logits and the weighted value sum."""
        return 4 * self.width * visible_tokens


@dataclass(frozen=True, kw_only=True)
class LightningMixerShape:
    """The shape of lightning attention in a HypeNet, with its gate and norms."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """The total width of all heads."""
        return self.heads * self.head_dim

    @property
    def parameters(self) -> int:
        narrow = self.kv_heads * self.head_dim
        return self.hidden * (3 * self.width + 2 * narrow) + self.width + 2 * self.head_dim

    @property
    def state(self) -> int:
        """The number of values in the recurrent state of one sequence."""
        return self.heads * self.head_dim**2

    @property
    def flops(self) -> float:
        """The forward FLOPs per token of the state update and of the product of query and state."""
        return 4 * self.state

    @property
    def kernel_flops(self) -> tuple[float, float]:
        """The FLOPs per token of the chunked kernels: forward pass and backward pass.

        Products with states are counted as in `flops`. Within a chunk, the kernels compute complete
        tiles: the logits and the values forward, and five such products backward.
        """
        within_chunk = 2 * _CHUNK_TOKENS * self.width
        return 4 * self.state + 2 * within_chunk, 10 * self.state + 5 * within_chunk


@dataclass(frozen=True, kw_only=True)
class JetMixerShape:
    """The shape of a JetBlock: a gated delta rule on values convolved with generated kernels.

    Source: NVlabs/Jet-Nemotron, jetai/modeling/hf/jet_block.py and dynamic_conv.py @2e05cf9.
    """

    hidden: int
    heads: int
    key_dim: int
    value_dim: int
    kernel: int
    generator_reduction: int

    @property
    def width(self) -> int:
        """The total width of all value heads."""
        return self.heads * self.value_dim

    @property
    def parameters(self) -> int:
        keys, generator = self.heads * self.key_dim, self.width // self.generator_reduction
        # Projections of q and k; of v, gate and output; of decay and rate. The return value also
        # counts two parameters per head for decay and rate, and the norm.
        products = self.hidden * (2 * keys + 3 * self.width + 2 * self.heads)
        kernels = self.hidden * generator + (generator + 1) * self.width * self.kernel
        return products + kernels + 2 * self.heads + self.value_dim

    @property
    def state(self) -> int:
        """The number of values in the recurrent state of one sequence."""
        return self.heads * self.key_dim * self.value_dim

    @property
    def generated(self) -> int:
        """The number of values per token in the generated convolution kernels."""
        return self.width * self.kernel

    @property
    def flops(self) -> float:
        """The forward FLOPs per token of the delta rule and the convolution.

        The delta rule needs a third product with the state: the value that it predicts for the key.
        """
        return 6 * self.state + 2 * self.width * self.kernel

    @property
    def kernel_flops(self) -> tuple[float, float]:
        """The FLOPs per token, forward and backward; the overhead of chunks is not counted."""
        return self.flops, 2 * self.flops
