"""Sizes of what mixes tokens in a layer: softmax attention, lightning attention, JetBlock.

Shapes: M hidden size, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SoftmaxMixerShape:
    """Softmax attention with grouped queries.

    `gated` says whether there is an output gate, `norms` whether queries and keys are normalised,
    `biases` whether their projections and that of values have biases.
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
        """The size of all heads of queries together."""
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
        """Keys and values kept per token."""
        return 2 * self.kv_heads * self.head_dim

    def flops(self, seen: float) -> float:
        """Forward FLOPs of a token's logits and weighted sum over the tokens that it sees."""
        return 4 * self.width * seen


@dataclass(frozen=True, kw_only=True)
class LightningMixerShape:
    """Lightning attention of a HypeNet, with its gate and norms."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """The size of all heads together."""
        return self.heads * self.head_dim

    @property
    def parameters(self) -> int:
        narrow = self.kv_heads * self.head_dim
        return self.hidden * (3 * self.width + 2 * narrow) + self.width + 2 * self.head_dim

    @property
    def state(self) -> int:
        """Values of the recurrent state of a sequence."""
        return self.heads * self.head_dim**2

    @property
    def flops(self) -> float:
        """Forward FLOPs per token of the update of the state and the read-out."""
        return 4 * self.state


@dataclass(frozen=True, kw_only=True)
class JetMixerShape:
    """JetBlock: a gated delta rule whose values pass a convolution with generated kernels.

    NVlabs/Jet-Nemotron, jetai/modeling/hf/jet_block.py and dynamic_conv.py @2e05cf9.
    """

    hidden: int
    heads: int
    key_dim: int
    value_dim: int
    kernel: int
    generator_reduction: int

    @property
    def width(self) -> int:
        """The size of all heads of values together."""
        return self.heads * self.value_dim

    @property
    def parameters(self) -> int:
        keys, generator = self.heads * self.key_dim, self.width // self.generator_reduction
        # q, k; v, gate and output; decay and rate with two parameters a head; the norm.
        products = self.hidden * (2 * keys + 3 * self.width + 2 * self.heads)
        kernels = self.hidden * generator + (generator + 1) * self.width * self.kernel
        return products + kernels + 2 * self.heads + self.value_dim

    @property
    def state(self) -> int:
        """Values of the recurrent state of a sequence."""
        return self.heads * self.key_dim * self.value_dim

    @property
    def flops(self) -> float:
        """Forward FLOPs per token: the delta rule also reads what the state holds for a key."""
        return 6 * self.state + 2 * self.width * self.kernel
