"""What one row of the architecture table says: a family of checkpoints as data."""

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
    """True whatever the config says."""
    return True


def never(config: Config) -> bool:
    """False whatever the config says."""
    return False


def flag(key: str) -> Condition:
    """True where the config sets `key`; absent and null mean off."""
    return lambda config: bool(lookup(config, key))


def no_layers(config: Config, kinds: tuple[LayerKind, ...]) -> tuple[int, ...]:
    """Choose none."""
    return ()


def no_sizes(config: Config, kinds: tuple[LayerKind, ...]) -> Mapping[int, int]:
    """Every layer has the sizes that the config gives for all."""
    return {}


def full_layers(config: Config, kinds: tuple[LayerKind, ...]) -> tuple[int, ...]:
    """Choose the layers without a window."""
    return tuple(layer for layer, kind in enumerate(kinds) if kind is LayerKind.FULL)


def marked_without_rope(config: Config, kinds: tuple[LayerKind, ...]) -> tuple[int, ...]:
    """Choose the layers that the config marks as unrotated; smollm3, llama4."""
    return without_rope(config)


class Form(StrEnum):
    """How the shape of a module's weight follows from the heads."""

    INPUT = "input"  # [rows of all its shares, inner]
    OUTPUT = "output"  # [hidden, query heads * head_dim]
    NORM = "norm"  # [head_dim], or [heads * head_dim] where it spans the heads
    HEAD_NORM = "head_norm"  # [heads, head_dim]
    SCALARS = "scalars"  # [heads]: a parameter of its own, without ".weight" behind its name


@dataclass(frozen=True, kw_only=True)
class Module:
    """A module of the attention block, and the roles its rows play.

    `name` is relative to the block; the tensors are `<name>.weight` (scalars: `<name>`) and, where
    `bias` holds, `<name>.bias`, which has the same rows and therefore the same roles.
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
        """Return the names of weight and bias, below the block."""
        weight = self.name if self.form is Form.SCALARS else f"{self.name}.weight"
        return (weight, f"{self.name}.bias") if self.bias(config) else (weight,)


@dataclass(frozen=True, kw_only=True)
class SharedBlocks:
    """Attention blocks used by several layers: only the first `count_key` users hold tensors.

    With adapters (zamba2), use i of a block adds B_i A_i to its projections; A_i and B_i are the
    tensors `<module>.<i>.0.weight` and `<module>.<i>.1.weight`, kept in the block's first layer.
    """

    count_key: str | None
    adapters_if: Condition = never
    adapter_rank_key: str = "adapter_rank"
    adapters: tuple[tuple[Role, str], ...] = ()


# Tables of angles and causal masks that older code saved beside the weights.
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
    """Where the softmax layers of one kind of checkpoint are, and what their tensors are called.

    Attributes:
        name: how messages call it.
        model_types: the `model_type` values of config.json it covers.
        layer_kinds: config -> kind of every decoder layer.
        modules: the modules of a softmax attention block.
        block: the block's path in the decoder, whatever that is called; `{layer}` is the index.
        num_query_heads, num_kv_heads, head_dim, window, rope_theta: config keys (dotted where
            nested; head_dim "" where no key may change inner / heads).
        inner_multiple: width of the block's input in hidden sizes.
        rotates: does the config ask for rotary embeddings in softmax layers?
        unrotated: the softmax layers that do without, in a family that rotates in the others.
        local_rope_theta: config key of a second base for sliding layers.
        head_dims: the layers whose head_dim is not that of the config -> their head_dim.
        kv_shared: config key of how many of the last layers read an earlier layer's keys and
            values. What they may hold of W_K and W_V themselves is read by nothing.
        refusals: configs of which W_Q and W_K cannot be restored, and why.
        routing: further config keys that change what a logit q.k means -> value if unset.
        defaults: what the family's config class fills in for keys a config.json may omit.
        aliases: old spelling of a config key -> new spelling.
        shared: set where several layers use one block.
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
    """q_proj, k_proj, v_proj and an output projection; `output_bias` None means as the others."""
    return (
        Module(name="q_proj", form=Form.INPUT, shares=((Role.Q, per_query_head),), bias=bias),
        Module(name="k_proj", form=Form.INPUT, shares=((Role.K, per_kv_head),), bias=bias),
        Module(name="v_proj", form=Form.INPUT, shares=((Role.V, per_kv_head),), bias=bias),
        output_projection(output, bias=bias if output_bias is None else output_bias),
    )


def output_projection(name: str, *, bias: Condition = never) -> Module:
    """W_O: its heads are columns."""
    return Module(name=name, form=Form.OUTPUT, shares=((Role.O, whole_tensor),), bias=bias)


def shared_norms(
    q_norm: str = "q_norm",
    k_norm: str = "k_norm",
    *,
    exists: Condition = always,
    bias: Condition = never,
) -> tuple[Module, ...]:
    """qk-norm over head_dim: one weight vector for all heads."""
    return tuple(
        Module(name=name, form=Form.NORM, shares=((role, whole_tensor),), exists=exists, bias=bias)
        for name, role in ((q_norm, Role.Q_NORM), (k_norm, Role.K_NORM))
    )


def flat_norms() -> tuple[Module, ...]:
    """qk-norm over heads * head_dim: it has rows per head, but its variance couples the heads."""
    return (
        Module(name="q_norm", form=Form.NORM, shares=((Role.Q_NORM, per_query_head),)),
        Module(name="k_norm", form=Form.NORM, shares=((Role.K_NORM, per_kv_head),)),
    )


def norms_of_heads(*, exists: Condition) -> tuple[Module, ...]:
    """qk-norm over head_dim, with weights of its own for every head."""
    q_rows, k_rows = one_row_per_query_head, one_row_per_kv_head
    return (
        Module(name="q_norm", form=Form.HEAD_NORM, shares=((Role.Q_NORM, q_rows),), exists=exists),
        Module(name="k_norm", form=Form.HEAD_NORM, shares=((Role.K_NORM, k_rows),), exists=exists),
    )


def sinks() -> Module:
    """A learned logit per query head, which takes part in the softmax and has no value to read."""
    return Module(name="sinks", form=Form.SCALARS, shares=((Role.SINK, one_row_per_query_head),))
