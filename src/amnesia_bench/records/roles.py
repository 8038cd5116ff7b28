"""Types that describe attention layers: kinds of layers, and the tensors and rows of each role."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """The role of a parameter tensor in an attention layer."""

    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741 - the usual name of the output projection
    Q_NORM = "q_norm"
    K_NORM = "k_norm"
    GATE = "gate"
    SINK = "sink"  # one extra logit per head in the softmax, independent of W_Q and W_K


class LayerKind(StrEnum):
    """The way in which a decoder layer mixes tokens, as far as recall depends on it."""

    FULL = "full"  # softmax attention over the entire context
    SLIDING = "sliding"  # softmax attention over a window
    LINEAR = "linear"  # any mixer with a state of fixed size: linear attention, SSM, convolution
    NONE = "none"  # no token mixing (a separate MLP block)


@dataclass(frozen=True, kw_only=True)
class HeadRows:
    """The rows of a tensor that belong to one role, by head.

    The rows of head h are [start + h * stride, start + h * stride + head_dim). This covers a plain
    projection (stride == head_dim), an output gate that is interleaved with the queries of each
    head (stride == 2 * head_dim), a fused qkv_proj (start > 0), and the per-head blocks of GPT-NeoX
    (stride == 3 * head_dim).
    """

    start: int
    stride: int
    head_dim: int
    num_heads: int

    def rows(self, head: int) -> range:
        """Return the row indices of one head."""
        if not 0 <= head < self.num_heads:
            raise IndexError(f"head {head} of {self.num_heads}")
        first = self.start + head * self.stride
        return range(first, first + self.head_dim)


@dataclass(frozen=True, kw_only=True)
class RoleTensor:
    """A tensor, or some rows of it, with one role in one attention layer.

    `rows` is None if the entire tensor has the role and its rows do not correspond to heads. This
    is the case for an output projection (whose columns correspond to heads), a norm that all heads
    share, and a low-rank adapter of W_Q or W_K (zamba2), which is restored completely or not at
    all.
    """

    layer: int
    role: Role
    name: str
    rows: HeadRows | None


@dataclass(frozen=True, kw_only=True)
class AttentionMap:
    """The softmax layers of a checkpoint and their tensors.

    `root` is the name prefix of the decoder's tensors, without the part that `plain_name` removes.
    `layer_kinds` has one item per decoder layer. `tensors` lists the tensors of the FULL and
    SLIDING layers only, ordered by layer and role. If several layers share a block (zamba2), its
    tensors are listed only for the first of them. `routing` has the config values in which two
    checkpoints must agree for their W_Q and W_K to have the same meaning (for example head counts,
    rope and logit scale).
    """

    family: str
    root: str
    layer_kinds: tuple[LayerKind, ...]
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    tensors: tuple[RoleTensor, ...]
    routing: tuple[tuple[str, object], ...]

    def layers(self, *kinds: LayerKind) -> tuple[int, ...]:
        """Return the indices of all layers of these kinds."""
        return tuple(i for i, kind in enumerate(self.layer_kinds) if kind in kinds)
