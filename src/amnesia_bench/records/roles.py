"""The vocabulary of attention surgery: what a tensor of an attention layer is for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a parameter does in an attention layer."""

    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741 - the field's own name for the output projection
    Q_NORM = "q_norm"
    K_NORM = "k_norm"
    GATE = "gate"
    SINK = "sink"  # a logit per head that no key has: part of the softmax, of neither W_Q nor W_K


class LayerKind(StrEnum):
    """How a layer mixes tokens, as far as recall is concerned."""

    FULL = "full"  # softmax attention over the whole context
    SLIDING = "sliding"  # softmax attention over a window
    LINEAR = "linear"  # anything with a state of fixed size: linear attention, SSM, convolution
    NONE = "none"  # no token mixing (an MLP block of its own)


@dataclass(frozen=True, kw_only=True)
class HeadRows:
    """The rows of a tensor that belong to one role, head by head.

    Head h owns rows [start + h * stride, start + h * stride + head_dim). One record covers a
    plain projection (stride == head_dim), an output gate interleaved per head (stride ==
    2 * head_dim), a fused qkv_proj (start > 0) and GPT-NeoX's per-head blocks (stride ==
    3 * head_dim).
    """

    start: int
    stride: int
    head_dim: int
    num_heads: int

    def rows(self, head: int) -> range:
        """Return the row range of one head."""
        if not 0 <= head < self.num_heads:
            raise IndexError(f"head {head} of {self.num_heads}")
        first = self.start + head * self.stride
        return range(first, first + self.head_dim)


@dataclass(frozen=True, kw_only=True)
class RoleTensor:
    """One tensor (or the rows of one) that plays a role in one attention layer.

    `rows` is None when the whole tensor plays the role and has no rows per head: an output
    projection (its heads are columns), a norm shared by all heads, or a low-rank adapter of W_Q or
    W_K (zamba2), which moves whole or not at all.
    """

    layer: int
    role: Role
    name: str
    rows: HeadRows | None


@dataclass(frozen=True, kw_only=True)
class AttentionMap:
    """Where the softmax layers of a checkpoint are, and which tensors they own.

    `root` is the path prefix of the decoder's tensors, without what `plain_name` cuts off.
    `layer_kinds` has one entry per decoder layer; `tensors` lists the role tensors of the FULL
    and SLIDING layers only, by layer and role; where layers share one block (zamba2), under the
    first of them, and the others list none. `routing` holds the config values that must agree
    between two checkpoints for their W_Q and W_K to mean the same thing (head counts, rope,
    logit scale, ...).
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
        """Return the indices of the layers of these kinds."""
        return tuple(i for i, kind in enumerate(self.layer_kinds) if kind in kinds)
