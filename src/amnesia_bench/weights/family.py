"""The row type of the architecture table: a family of checkpoints, described as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from amnesia_bench.records.roles import LayerKind, Role
from amnesia_bench.weights.config_keys import Config, lookup
from amnesia_bench.weights.layer_kinds import LayerKinds, without_rope
from amnesia_bench.weights.row_layouts import (
    Heads,
    RowLayout,
    one_row_per_kv_head,
    one_row_per_query_head,
    per_kv_head,
    per_query_head,
    whole_tensor,
)

Condition = Callable[[Config], bool]
LayerChoice = Callable[[Config, tuple[LayerKind, ...]], tuple[int, ...]]
LayerSizes = Callable[[Config, tuple[LayerKind, ...]], Mapping[int, int]]


def always(config: Config) -> bool:
    """Return True for every config."""
    return True


def never(config: Config) -> bool:
    """Return False for every config."""
    return False


def flag(key: str) -> Condition:
    """Return a condition that holds if the config sets `key`; absent and null mean off."""
    return lambda config: bool(lookup(config, key))


def no_layers(config: Config, kinds: tuple[LayerKind, ...]) -> tuple[int, ...]:
    """Return no layers."""
    return ()


def no_sizes(config: Config, kinds: tuple[LayerKind, ...]) -> Mapping[int, int]:
    """Return no overrides: every layer has the sizes in the config."""
    return {}


def full_layers(config: Config, kinds: tuple[LayerKind, ...]) -> tuple[int, ...]:
    """Return the layers without a sliding window."""
    return tuple(layer for layer, kind in enumerate(kinds) if kind is LayerKind.FULL)


def marked_without_rope(config: Config, kinds: tuple[LayerKind, ...]) -> tuple[int, ...]:
    """Return the layers that the config marks as having no RoPE; smollm3, llama4."""
    return without_rope(config)


class Form(StrEnum):
    """How the shape of a module's weight follows from the heads."""

    INPUT = "input"  # [rows of all its shares, inner]
    OUTPUT = "output"  # [hidden, query heads * head_dim]
    NORM = "norm"  # [head_dim], or [heads * head_dim] where it spans the heads
    HEAD_NORM = "head_norm"  # [heads, head_dim]
    SCALARS = "scalars"  # [heads]: a bare parameter, without ".weight" in its name


@dataclass(frozen=True, kw_only=True)
class Module:
    """A module of the attention block, and the roles of its rows.

    `name` is relative to the block; the tensors are `<name>.weight` (scalars: `<name>`) and, if
    `bias` is true, `<name>.bias`, which has the same rows and therefore the same roles.
    """

    name: str
    form: Form
    shares: tuple[tuple[Role, RowLayout], ...]
    bias: Condition = never
    exists: Condition = always

    def shape(self, heads: Heads) -> tuple[int, ...]:
        """Return the shape of the weight."""
        if self.form is Form.OUTPUT:
            return (heads.hidden, heads.query * heads.dim)
        rows = [layout(heads) for _, layout in self.shares]
        size = sum(r.num_heads * r.head_dim if r is not None else heads.dim for r in rows)
        if self.form is Form.HEAD_NORM:
            return (size, heads.dim)
        return (size, heads.inner) if self.form is Form.INPUT else (size,)

    def tensors(self, config: Config) -> tuple[str, ...]:
        """Return the names of weight and bias, relative to the block."""
        weight = self.name if self.form is Form.SCALARS else f"{self.name}.weight"
        return (weight, f"{self.name}.bias") if self.bias(config) else (weight,)


@dataclass(frozen=True, kw_only=True)
class SharedBlocks:
    """Attention blocks that several layers share.

    The config key `count_key` holds the number of blocks (None: one). Only the first softmax layer
    of each block stores its tensors. With adapters (zamba2), softmax layer i adds B_i A_i to the
    projections of its block; A_i and B_i are the tensors `<module>.<i>.0.weight` and
    `<module>.<i>.1.weight` of the block's first layer.
    """

    count_key: str | None
    adapters_if: Condition = never
    adapter_rank_key: str = "adapter_rank"
    adapters: tuple[tuple[Role, str], ...] = ()


# Rotary tables and causal masks that older code saved with the weights.
BUFFERS = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "rotary.inv_freq",  # flash-linear-attention
    "bias",
    "masked_bias",
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Which layers of a family of checkpoints are softmax layers, and the names of their tensors.

    Attributes:
        name: the family's name in messages.
        model_types: the `model_type` values of config.json that the family covers.
        layer_kinds: config -> kind of every decoder layer.
        modules: the modules of a softmax attention block.
        block: the block's path relative to the decoder; `{layer}` is the layer index.
        num_query_heads, num_kv_heads, head_dim, window, rope_theta: config keys (dotted where
            nested; head_dim is "" where it is always inner / heads).
        inner_multiple: width of the block's input, in multiples of the hidden size.
        rotates: whether softmax layers use rotary embeddings.
        unrotated: the softmax layers without RoPE, in a family whose other layers use it.
        local_rope_theta: config key of a separate RoPE base for sliding layers.
        head_dims: layers whose head_dim differs from the config's -> their head_dim.
        kv_shared: config key of the number of last layers that read an earlier layer's keys and
            values. Their own W_K and W_V, if stored, are never read.
        refusals: configs whose W_Q and W_K cannot be restored, and the reason.
        routing: further config keys that change the meaning of a logit q.k -> value if unset.
        defaults: the config class's defaults of keys that a config.json may omit.
        aliases: old spelling of a config key -> new spelling.
        shared: set if several layers use one block.
    """

    name: str
    model_types: tuple[str, ...]
    layer_kinds: LayerKinds
    modules: tuple[Module, ...]
    block: str = "layers.{layer}.self_attn."
    num_query_heads: str = "num_attention_heads"
    num_kv_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    window: str = "sliding_window"
    rope_theta: str = "rope_theta"
    inner_multiple: int = 1
    rotates: Condition = always
    unrotated: LayerChoice = no_layers
    local_rope_theta: str | None = None
    head_dims: LayerSizes = no_sizes
    kv_shared: str | None = None
    refusals: tuple[tuple[Condition, str], ...] = ()
    routing: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    defaults: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    shared: SharedBlocks | None = None


def separate(
    *, bias: Condition = never, output_bias: Condition | None = None, output: str = "o_proj"
) -> tuple[Module, ...]:
    """Return q_proj, k_proj, v_proj and W_O; `output_bias` None means the same as `bias`."""
    return (
        Module(name="q_proj", form=Form.INPUT, shares=((Role.Q, per_query_head),), bias=bias),
        Module(name="k_proj", form=Form.INPUT, shares=((Role.K, per_kv_head),), bias=bias),
        Module(name="v_proj", form=Form.INPUT, shares=((Role.V, per_kv_head),), bias=bias),
        output_projection(output, bias=bias if output_bias is None else output_bias),
    )


def output_projection(name: str, *, bias: Condition = never) -> Module:
    """Return W_O, whose heads are columns."""
    return Module(name=name, form=Form.OUTPUT, shares=((Role.O, whole_tensor),), bias=bias)


def shared_norms(
    q_norm: str = "q_norm",
    k_norm: str = "k_norm",
    *,
    exists: Condition = always,
    bias: Condition = never,
) -> tuple[Module, ...]:
    """Return the qk-norms over head_dim, with one weight vector for all heads."""
    return tuple(
        Module(name=name, form=Form.NORM, shares=((role, whole_tensor),), exists=exists, bias=bias)
        for name, role in ((q_norm, Role.Q_NORM), (k_norm, Role.K_NORM))
    )


def flat_norms() -> tuple[Module, ...]:
    """Return the qk-norms over heads * head_dim: rows per head, but one variance for all heads."""
    return (
        Module(name="q_norm", form=Form.NORM, shares=((Role.Q_NORM, per_query_head),)),
        Module(name="k_norm", form=Form.NORM, shares=((Role.K_NORM, per_kv_head),)),
    )


def norms_of_heads(*, exists: Condition) -> tuple[Module, ...]:
    """Return the qk-norms over head_dim, with separate weights for each head."""
    q_rows, k_rows = one_row_per_query_head, one_row_per_kv_head
    return (
        Module(name="q_norm", form=Form.HEAD_NORM, shares=((Role.Q_NORM, q_rows),), exists=exists),
        Module(name="k_norm", form=Form.HEAD_NORM, shares=((Role.K_NORM, k_rows),), exists=exists),
    )


def sinks() -> Module:
    """Return the attention sinks: a learned logit per query head that has no value vector."""
    return Module(name="sinks", form=Form.SCALARS, shares=((Role.SINK, one_row_per_query_head),))
