"""Collect the config values that determine what W_Q and W_K of a checkpoint mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amnesia_bench.records.roles import LayerKind
from amnesia_bench.weights.config_keys import Config, integer, lookup
from amnesia_bench.weights.family import Family
from amnesia_bench.weights.row_layouts import Heads

# Rope types that depend on the context length of pretraining (modeling_rope_utils.py,
# standardize_rope_params).
SCALED_FROM_A_LENGTH = ("llama3", "yarn", "longrope")
# Rope types that depend on the current maximum context length.
SCALED_TO_A_LENGTH = ("dynamic", "longrope")


def routing_of(
    family: Family, config: Config, heads: Heads, kinds: tuple[LayerKind, ...]
) -> tuple[tuple[str, object], ...]:
    """Return the (name, value) pairs that determine what W_Q and W_K mean.

    The pairs do not depend on the version of transformers that wrote the config. If two configs
    have equal pairs, W_Q and W_K mean the same in both. A different "rope" may still be compatible;
    see `surgery.rope.check_rope`. The value of "rope" is None without RoPE, else a flat mapping of
    rope keys. If the rope depends on the layer kind, the keys have a prefix, for example
    `full_attention.rope_theta`.
    """
    entries: dict[str, object] = {
        "hidden_size": heads.hidden,
        "num_query_heads": heads.query,
        "num_kv_heads": heads.kv,
        "head_dim": heads.dim,
        "layer_kinds": tuple(kind.value for kind in kinds),
        "rope": _rope(family, config, heads) if family.rotates(config) else None,
    }
    if dims := family.head_dims(config, kinds):
        entries["head_dims_of_layers"] = _frozen(dims)
    if unrotated := family.unrotated(config, kinds):
        entries["layers_without_rope"] = unrotated
    if LayerKind.SLIDING in kinds:
        entries["sliding_window"] = lookup(config, family.window)
    for key, default in family.routing.items():
        value = lookup(config, key)
        entries[key] = _frozen(default if value is None else value)
    return tuple(entries.items())


def _rope(family: Family, config: Config, heads: Heads) -> dict[str, object]:
    # transformers 4 writes rope_theta and rope_scaling. transformers 5 writes rope_parameters; in
    # some families, it is nested by layer kind.
    raw = lookup(config, "rope_scaling") or lookup(config, "rope_parameters") or {}
    raw = raw if isinstance(raw, Mapping) else {"rope_type": raw}
    theta = lookup(config, family.rope_theta)
    nested = {key: value for key, value in raw.items() if isinstance(value, Mapping)}
    if family.local_rope_theta is not None:
        local_theta = lookup(config, family.local_rope_theta)
        full = nested.get("full_attention", {} if nested else raw)
        sliding = nested.get("sliding_attention", {})
        return _flat(
            {
                "full_attention": _one_rope(full, config, theta, heads),
                "sliding_attention": _one_rope(sliding, config, local_theta, heads),
            }
        )
    if nested:
        return _flat({k: _one_rope(v, config, theta, heads) for k, v in nested.items()})
    return _one_rope(raw, config, theta, heads)


def _flat(ropes: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    return {f"{kind}.{key}": value for kind, rope in ropes.items() for key, value in rope.items()}


def _one_rope(
    raw: Mapping[str, object], config: Config, theta: object, heads: Heads
) -> dict[str, object]:
    rope = {key: _frozen(value) for key, value in raw.items() if value is not None}
    rope_type = rope.setdefault("rope_type", rope.get("type", "default"))
    rope.pop("type", None)
    if rope_type == "su":  # the name of longrope in the first Phi-3 configs
        rope_type = rope["rope_type"] = "longrope"
    if rope_type == "mrope":  # the rope_type of the first Qwen2-VL configs
        rope_type = rope["rope_type"] = "default"
    rope.setdefault("rope_theta", 10_000.0 if theta is None else theta)
    rope.setdefault("partial_rotary_factor", _partial_rotary_factor(config, heads))
    if rope_type in SCALED_FROM_A_LENGTH:
        rope["original_max_position_embeddings"] = (
            lookup(config, "original_max_position_embeddings")
            or rope.get("original_max_position_embeddings")
            or lookup(config, "max_position_embeddings")
        )
    if rope_type in SCALED_TO_A_LENGTH:
        rope["max_position_embeddings"] = lookup(config, "max_position_embeddings")
    return rope


def _partial_rotary_factor(config: Config, heads: Heads) -> object:
    factor = lookup(config, "partial_rotary_factor")
    if factor is None and lookup(config, "rotary_dim") is not None:  # MiniMax's remote code
        return integer(config, "rotary_dim") / heads.dim
    return 1.0 if factor is None else factor


def _frozen(value: object) -> object:
    if isinstance(value, Mapping):
        return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_frozen(item) for item in value)
    return value
