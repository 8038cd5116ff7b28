"""Determine the kind of each decoder layer from a config; one pure function per convention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import LayerKind
from amnesia_bench.weights.config_keys import (
    Config,
    integer,
    integer_list,
    lookup,
    optional_integer,
    string_list,
)

LayerKinds = Callable[[Config], tuple[LayerKind, ...]]

# The names of layer kinds in configs; each name means the same kind in every family. When loading
# a config, transformers 5 renames "attention" and "mamba" (configuration_utils.py,
# _LEGACY_LAYER_TYPE_REMAP), so a raw config.json may contain the old or the new name.
KIND_OF_MARK = {
    "full_attention": LayerKind.FULL,
    "attention": LayerKind.FULL,
    "attn": LayerKind.FULL,
    "hybrid": LayerKind.FULL,  # a softmax block and an SSM in one layer (falcon_h1, zamba2)
    "sliding_attention": LayerKind.SLIDING,
    "swa": LayerKind.SLIDING,
    "chunked_attention": LayerKind.SLIDING,  # each token attends within its chunk only (llama4)
    "linear_attention": LayerKind.LINEAR,
    "lightning-attn": LayerKind.LINEAR,
    "lightning_attn": LayerKind.LINEAR,
    "mamba": LayerKind.LINEAR,
    "jet": LayerKind.LINEAR,
    "conv": LayerKind.LINEAR,
    "moe": LayerKind.NONE,
    "mlp": LayerKind.NONE,
}
KIND_OF_PATTERN_CHAR = {
    "*": LayerKind.FULL,
    "M": LayerKind.LINEAR,
    "-": LayerKind.NONE,
    "E": LayerKind.NONE,
}


def all_full(config: Config) -> tuple[LayerKind, ...]:
    """Return FULL for every layer."""
    return (LayerKind.FULL,) * integer(config, "num_hidden_layers")


def one_window(config: Config) -> tuple[LayerKind, ...]:
    """Return one kind for all layers: SLIDING if `sliding_window` limits the context, else FULL.

    A window of null or 0 means no window. Used by mistral, mixtral and phi3.
    """
    window = (
        optional_integer(config, "sliding_window") if lookup(config, "sliding_window") else None
    )
    # A window that covers the context has no effect: in Phi-3-mini-128k, sliding_window is 262144.
    context = optional_integer(config, "max_position_embeddings")
    binds = window is not None and (context is None or window < context)
    kind = LayerKind.SLIDING if binds else LayerKind.FULL
    return (kind,) * integer(config, "num_hidden_layers")


def one_window_if_used(config: Config) -> tuple[LayerKind, ...]:
    """Apply `one_window` if `use_sliding_window` is set, else return FULL for every layer.

    Used by qwen3_moe; Qwen3MoeModel ignores layer_types.
    """
    return one_window(config) if lookup(config, "use_sliding_window") else all_full(config)


def by_marks(*keys: str, otherwise: LayerKinds | None = None) -> LayerKinds:
    """Return a rule that converts the config's list of marks, one per layer, to layer kinds.

    Args:
        keys: the possible config keys of the list, newest spelling first; the first key that the
            config has is used.
        otherwise: the rule for a config that has none of the keys; if None, such a config is
            refused.
    """

    def kinds(config: Config) -> tuple[LayerKind, ...]:
        key = next((key for key in keys if lookup(config, key) is not None), None)
        if key is not None:
            return _from_marks(config, key)
        if otherwise is None:
            raise UserError(f"config.json: one of {', '.join(keys)} must name the softmax layers")
        return otherwise(config)

    return kinds


def _from_marks(config: Config, key: str) -> tuple[LayerKind, ...]:
    marks = string_list(config, key)
    if unknown := sorted(set(marks) - KIND_OF_MARK.keys()):
        raise UserError(
            f"config.json: {key} holds unknown layer kinds {', '.join(unknown)}",
            hint="known kinds: " + ", ".join(KIND_OF_MARK),
        )
    return _with_checked_length(config, key, tuple(KIND_OF_MARK[mark] for mark in marks))


def _with_checked_length(
    config: Config, key: str, kinds: tuple[LayerKind, ...]
) -> tuple[LayerKind, ...]:
    layers = optional_integer(config, "num_hidden_layers")
    if layers is not None and layers != len(kinds):
        raise UserError(
            f"config.json: {key} lists {len(kinds)} layers, but num_hidden_layers is {layers}"
        )
    return kinds


def by_pattern(config: Config) -> tuple[LayerKind, ...]:
    """Convert the characters of `hybrid_override_pattern`, one per layer, to kinds (nemotron_h)."""
    pattern = lookup(config, "hybrid_override_pattern")
    if not isinstance(pattern, str) or set(pattern) - KIND_OF_PATTERN_CHAR.keys():
        raise UserError(
            f"config.json: hybrid_override_pattern should be a string of "
            f"{' '.join(KIND_OF_PATTERN_CHAR)}, found {pattern!r}"
        )
    # If the config lists the layers, NemotronHConfig ignores num_hidden_layers.
    return tuple(KIND_OF_PATTERN_CHAR[char] for char in pattern)


def every_nth(interval: str | int, others: LayerKind) -> LayerKinds:
    """Return a rule that returns FULL for the layers n-1, 2n-1, ... and `others` for the rest.

    Args:
        interval: n, or the config key of n.
        others: the kind of the other layers.
    """

    def kinds(config: Config) -> tuple[LayerKind, ...]:
        n = interval if isinstance(interval, int) else integer(config, interval)
        return tuple(
            others if (layer + 1) % n else LayerKind.FULL
            for layer in range(integer(config, "num_hidden_layers"))
        )

    return kinds


def if_windowed(rule: LayerKinds) -> LayerKinds:
    """Return a rule: `rule` if the config has a `sliding_window`, else `all_full` (exaone4)."""
    return lambda config: rule(config) if lookup(config, "sliding_window") else all_full(config)


def first_of_four(config: Config) -> tuple[LayerKind, ...]:
    """Return FULL for the layers 0, 4, 8, ... and SLIDING for the rest (cwm)."""
    return tuple(
        LayerKind.SLIDING if layer % 4 else LayerKind.FULL
        for layer in range(integer(config, "num_hidden_layers"))
    )


def last_is_full(rule: LayerKinds) -> LayerKinds:
    """Return `rule` modified to return FULL for the last layer (gemma4; see Gemma4TextConfig)."""
    return lambda config: (*rule(config)[:-1], LayerKind.FULL)


def all_but(key: str) -> LayerKinds:
    """Return a rule that returns NONE for the layers listed under `key`, and FULL for the rest.

    Used by mllama, in which the listed layers attend only to the image.
    """

    def kinds(config: Config) -> tuple[LayerKind, ...]:
        others = integer_list(config, key)
        return tuple(
            LayerKind.NONE if layer in others else LayerKind.FULL
            for layer in range(integer(config, "num_hidden_layers"))
        )

    return kinds


def without_rope(config: Config) -> tuple[int, ...]:
    """Return the indices of the layers without RoPE (smollm3, llama4).

    These are the layers whose entry in `no_rope_layers` is 0 (1 means RoPE) or, if the config has
    no such list, every `no_rope_layer_interval`-th layer.
    """
    layers = integer(config, "num_hidden_layers")
    if lookup(config, "no_rope_layers"):
        marks = integer_list(config, "no_rope_layers")
        return tuple(layer for layer, rotates in enumerate(marks[:layers]) if not rotates)
    interval = integer(config, "no_rope_layer_interval")
    return tuple(range(interval - 1, layers, interval))


def window_without_rope(config: Config) -> tuple[LayerKind, ...]:
    """Return SLIDING for the layers without RoPE if a window is in use, and FULL otherwise.

    A window is in use if the config sets `use_sliding_window` and `sliding_window`
    (SmolLM3Config).
    """
    slides = bool(lookup(config, "use_sliding_window")) and bool(lookup(config, "sliding_window"))
    without_rotation = without_rope(config) if slides else ()
    return tuple(
        LayerKind.SLIDING if layer in without_rotation else LayerKind.FULL
        for layer in range(integer(config, "num_hidden_layers"))
    )


def chunks_with_rope(config: Config) -> tuple[LayerKind, ...]:
    """Return SLIDING (chunked) for the layers with RoPE, FULL for the rest (Llama4TextConfig)."""
    full = without_rope(config)
    return tuple(
        LayerKind.FULL if layer in full else LayerKind.SLIDING
        for layer in range(integer(config, "num_hidden_layers"))
    )


def period_and_offset(config: Config) -> tuple[LayerKind, ...]:
    """Return FULL where layer % attn_layer_period == attn_layer_offset, else LINEAR (jamba)."""
    period = integer(config, "attn_layer_period")
    offset = lookup(config, "attn_layer_offset")
    return tuple(
        LayerKind.FULL if layer % period == offset else LayerKind.LINEAR
        for layer in range(integer(config, "num_hidden_layers"))
    )


def by_indices(key: str, otherwise: LayerKinds | None = None) -> LayerKinds:
    """Return a rule that returns FULL for the listed layers and LINEAR for the rest.

    Args:
        key: the config key of the list of layer indices.
        otherwise: the rule for a config without the list; if None, all its layers are LINEAR.
    """

    def kinds(config: Config) -> tuple[LayerKind, ...]:
        if lookup(config, key) is None and otherwise is not None:
            return otherwise(config)
        indices = integer_list(config, key) if lookup(config, key) is not None else []
        return _kinds_at(indices, integer(config, "num_hidden_layers"), LayerKind.FULL, key)

    return kinds


def _kinds_at(
    indices: Sequence[int], layers: int, kind: LayerKind, key: str
) -> tuple[LayerKind, ...]:
    if outside := [index for index in indices if not 0 <= index < layers]:
        raise UserError(
            f"config.json: {key} lists layers {outside}, but the model has {layers} layers"
        )
    return tuple(kind if layer in indices else LayerKind.LINEAR for layer in range(layers))


def upper_layers_slide(config: Config) -> tuple[LayerKind, ...]:
    """Return FULL for the lower layers and, if a window is in use, SLIDING for the upper ones.

    Used by qwen2 and qwen3. A window is in use if the config sets `use_sliding_window` and
    `sliding_window`. Despite its name, `max_window_layers` is the number of lower layers, which
    have full attention (Qwen2Config.__post_init__).
    """
    layers = integer(config, "num_hidden_layers")
    slides = bool(lookup(config, "use_sliding_window")) and bool(lookup(config, "sliding_window"))
    first = lookup(config, "max_window_layers") if slides else layers
    if not isinstance(first, int):
        raise UserError(f"config.json: max_window_layers should be a number, found {first!r}")
    return tuple(LayerKind.SLIDING if layer >= first else LayerKind.FULL for layer in range(layers))


def upper_layers_slide_if_window(config: Config) -> tuple[LayerKind, ...]:
    """Apply `upper_layers_slide` as if `use_sliding_window` were set (Dots1Config)."""
    return upper_layers_slide({**config, "use_sliding_window": True})


def lower_even_layers_slide(config: Config) -> tuple[LayerKind, ...]:
    """Return SLIDING for the even layers below `max_window_layers`, and FULL for the rest.

    If the config does not set `use_sliding_window` and `sliding_window`, all layers are FULL
    (Qwen2MoeConfig.__post_init__).
    """
    slides = bool(lookup(config, "use_sliding_window")) and bool(lookup(config, "sliding_window"))
    num_lower_layers = integer(config, "max_window_layers") if slides else 0
    return tuple(
        LayerKind.SLIDING if layer % 2 == 0 and layer < num_lower_layers else LayerKind.FULL
        for layer in range(integer(config, "num_hidden_layers"))
    )


def attn_type_list(config: Config) -> tuple[LayerKind, ...]:
    """Convert `attn_type_list`, in which 1 means softmax and 0 lightning attention, to kinds.

    The key comes from the remote code of MiniMax-Text-01.
    """
    types = integer_list(config, "attn_type_list")
    kinds = tuple(LayerKind.FULL if kind == 1 else LayerKind.LINEAR for kind in types)
    return _with_checked_length(config, "attn_type_list", kinds)


def cycled_blocks(config: Config) -> tuple[LayerKind, ...]:
    """Repeat the pattern in `block_types` over all layers (recurrent_gemma).

    The attention blocks are SLIDING, because their attention is always local.
    """
    blocks = string_list(config, "block_types")
    if not blocks:
        raise UserError("config.json: block_types is empty")
    return tuple(
        LayerKind.SLIDING if blocks[layer % len(blocks)] == "attention" else LayerKind.LINEAR
        for layer in range(integer(config, "num_hidden_layers"))
    )


def attn_dict(config: Config) -> tuple[LayerKind, ...]:
    """Return softmax kinds for the layers listed in `attn.layers`, and LINEAR for the rest.

    Used by the hybrids of flash-linear-attention, with `attn: {layers: [...], window_size: ...}`.
    The listed layers are SLIDING if `attn.window_size` is set, else FULL.
    """
    attn = lookup(config, "attn")
    if attn is None:
        return (LayerKind.LINEAR,) * integer(config, "num_hidden_layers")
    if not isinstance(attn, Mapping):
        # fla/models/hybrid.py also accepts a list of mappings with different heads and windows.
        raise UserError("config.json: attn should be one mapping; a list is not supported")
    kind = LayerKind.FULL if lookup(config, "attn.window_size") is None else LayerKind.SLIDING
    indices = integer_list(config, "attn.layers")
    return _kinds_at(indices, integer(config, "num_hidden_layers"), kind, "attn.layers")
