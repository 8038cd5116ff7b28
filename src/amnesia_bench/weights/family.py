"""Define `Family`, a row of the architecture table, and functions that build parts of a row."""

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
    """Return a condition that is true if the config has a truthy value of `key`."""
    return lambda config: bool(lookup(config, key))


def no_layers(config: Config, kinds: tuple[LayerKind, ...]) -> tuple[int, ...]:
    """Return an empty tuple: no layer is chosen."""
    return ()


def no_sizes(config: Config, kinds: tuple[LayerKind, ...]) -> Mapping[int, int]:
    """Return an empty mapping: every layer has the head_dim in the config."""
    return {}


def full_layers(config: Config, kinds: tuple[LayerKind, ...]) -> tuple[int, ...]:
    """Return the layers with full softmax attention."""
    return tuple(layer for layer, kind in enumerate(kinds) if kind is LayerKind.FULL)


def marked_without_rope(config: Config, kinds: tuple[LayerKind, ...]) -> tuple[int, ...]:
    """Return the layers that the config marks as layers without RoPE (smollm3, llama4)."""
    return without_rope(config)


class Form(StrEnum):
    """The shape of a module's weight in terms of the head counts and sizes."""

    INPUT = "input"  # [rows of all roles, inner]
    OUTPUT = "output"  # [hidden, query heads * head_dim]
    NORM = "norm"  # [head_dim], or [heads * head_dim] if it spans all heads
    HEAD_NORM = "head_norm"  # [heads, head_dim]
    SCALARS = "scalars"  # [heads], a bare parameter whose name does not end in ".weight"


@dataclass(frozen=True, kw_only=True)
class Module:
    """A module of the attention block, and the roles of its rows.

    `name` is relative to the block. The tensors of the module are `<name>.weight` (for SCALARS,
    `<name>`) and, if the condition `bias` is true, `<name>.bias`. The bias has the same rows as the
    weight, so its rows have the same roles. `shares` lists the roles and their rows. The module
    exists only if the condition `exists` is true.
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
        """Return the names of the weight and, if there is one, the bias, relative to the block."""
        weight = self.name if self.form is Form.SCALARS else f"{self.name}.weight"
        return (weight, f"{self.name}.bias") if self.bias(config) else (weight,)


@dataclass(frozen=True, kw_only=True)
class SharedBlocks:
    """Attention blocks that are each shared by several layers.

    `count_key` is the config key of the number of blocks; None means one block. The tensors of a
    block are stored only in the first softmax layer that uses it. If the condition `adapters_if` is
    true (zamba2), softmax layer i (counting only softmax layers, from 0) adds B_i A_i to the
    projections of its block. A_i and B_i are the tensors `<module>.<i>.0.weight` and
    `<module>.<i>.1.weight`, stored with the block; `adapters` lists the roles and the modules.
    """

    count_key: str | None
    adapters_if: Condition = never
    adapter_rank_key: str = "adapter_rank"
    adapters: tuple[tuple[Role, str], ...] = ()


# Buffers (rotary tables and causal masks) that older code saved together with the weights.
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
    """A row of the architecture table: the softmax layers of a family and their tensor names.

    Attributes:
        name: the name of the family in messages.
        model_types: the values of `model_type` in config.json that the family covers.
        layer_kinds: the function that returns the kind of every decoder layer from the config.
        modules: the modules of a softmax attention block.
        block: the path of the block relative to the decoder; `{layer}` is the layer index.
        num_query_heads, num_kv_heads, head_dim, window, rope_theta: the names of config keys,
            dotted if the key is nested; head_dim is "" if it is always inner / query heads.
        inner_multiple: the width of the block's input, as a multiple of the hidden size.
        rotates: whether the softmax layers use rotary embeddings (RoPE).
        unrotated: the layers without RoPE, in a family whose other softmax layers use RoPE.
        local_rope_theta: the config key of a separate RoPE base for the sliding layers.
        head_dims: for each layer whose head_dim differs from the config's, its head_dim.
        kv_shared: the config key of n, if the last n layers use the keys and values of earlier
            layers. W_K and W_V of those n layers, if stored, are never used.
        refusals: conditions under which W_Q and W_K cannot be restored, and the reasons.
        routing: further config keys that affect the logit q.k, with their values if unset.
        defaults: the config class's default values for keys that a config.json may omit.
        aliases: a map from the old spelling of a config key to the new one.
        shared: the shared attention blocks, or None if every layer has its own block.
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
    """Return separate q_proj, k_proj, v_proj and W_O; by default, `output_bias` equals `bias`."""
    return (
        Module(name="q_proj", form=Form.INPUT, shares=((Role.Q, per_query_head),), bias=bias),
        Module(name="k_proj", form=Form.INPUT, shares=((Role.K, per_kv_head),), bias=bias),
        Module(name="v_proj", form=Form.INPUT, shares=((Role.V, per_kv_head),), bias=bias),
        output_projection(output, bias=bias if output_bias is None else output_bias),
    )


def output_projection(name: str, *, bias: Condition = never) -> Module:
    """Return W_O, in which a head is a group of columns, not of rows."""
    return Module(name=name, form=Form.OUTPUT, shares=((Role.O, whole_tensor),), bias=bias)


def shared_norms(
    q_norm: str = "q_norm",
    k_norm: str = "k_norm",
    *,
    exists: Condition = always,
    bias: Condition = never,
) -> tuple[Module, ...]:
    """Return qk-norms that normalise each head, with one weight vector for all heads."""
    return tuple(
        Module(name=name, form=Form.NORM, shares=((role, whole_tensor),), exists=exists, bias=bias)
        for name, role in ((q_norm, Role.Q_NORM), (k_norm, Role.K_NORM))
    )


def flat_norms() -> tuple[Module, ...]:
    """Return qk-norms over heads * head_dim: weights per head, but one variance for all heads."""
    return (
        Module(name="q_norm", form=Form.NORM, shares=((Role.Q_NORM, per_query_head),)),
        Module(name="k_norm", form=Form.NORM, shares=((Role.K_NORM, per_kv_head),)),
    )


def norms_of_heads(*, exists: Condition) -> tuple[Module, ...]:
    """Return qk-norms that normalise each head, with separate weights for each head."""
    q_rows, k_rows = one_row_per_query_head, one_row_per_kv_head
    return (
        Module(name="q_norm", form=Form.HEAD_NORM, shares=((Role.Q_NORM, q_rows),), exists=exists),
        Module(name="k_norm", form=Form.HEAD_NORM, shares=((Role.K_NORM, k_rows),), exists=exists),
    )


def sinks() -> Module:
    """Return the attention sinks: per query head, one learned logit without a value vector."""
    return Module(name="sinks", form=Form.SCALARS, shares=((Role.SINK, one_row_per_query_head),))
