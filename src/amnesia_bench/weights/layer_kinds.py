"""How a config says which decoder layers are softmax attention: one pure function per spelling."""

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

# Every spelling of a layer's kind found in configs; no two families disagree about a word.
# transformers 5 rewrites "attention" and "mamba" when it loads (configuration_utils.py,
# _LEGACY_LAYER_TYPE_REMAP), so a raw config.json may hold either spelling.
KIND_OF_MARK = {
    "full_attention": LayerKind.FULL,
    "attention": LayerKind.FULL,
    "attn": LayerKind.FULL,
    "hybrid": LayerKind.FULL,  # a softmax block and an SSM in one layer (falcon_h1, zamba2)
    "sliding_attention": LayerKind.SLIDING,
    "swa": LayerKind.SLIDING,
    "chunked_attention": LayerKind.SLIDING,  # back to the start of a chunk only (llama4)
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
    """Every layer attends to the whole context."""
    return (LayerKind.FULL,) * integer(config, "num_hidden_layers")


def one_window(config: Config) -> tuple[LayerKind, ...]:
    """Every layer has the same `sliding_window` (null or 0: none); mistral, mixtral, phi3."""
    window = (
        optional_integer(config, "sliding_window") if lookup(config, "sliding_window") else None
    )
    # Phi-3-mini-128k has sliding_window 262144: a window over the whole context cuts nothing.
    context = optional_integer(config, "max_position_embeddings")
    binds = window is not None and (context is None or window < context)
    kind = LayerKind.SLIDING if binds else LayerKind.FULL
    return (kind,) * integer(config, "num_hidden_layers")


def one_window_if_used(config: Config) -> tuple[LayerKind, ...]:
    """As one_window, if `use_sliding_window`; Qwen3MoeModel, which ignores layer_types."""
    return one_window(config) if lookup(config, "use_sliding_window") else all_full(config)


def by_marks(*keys: str, otherwise: LayerKinds | None = None) -> LayerKinds:
    """Read one mark per layer from the first of `keys` the config has.

    Args:
        keys: config keys, newest spelling first.
        otherwise: the rule for a config without any of them; None makes that an error.
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
    return _counted(config, key, tuple(KIND_OF_MARK[mark] for mark in marks))


def _counted(config: Config, key: str, kinds: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    layers = optional_integer(config, "num_hidden_layers")
    if layers is not None and layers != len(kinds):
        raise UserError(f"config.json: {key} marks {len(kinds)} layers, num_hidden_layers {layers}")
    return kinds


def by_pattern(config: Config) -> tuple[LayerKind, ...]:
    """Read `hybrid_override_pattern`, one character per layer; nemotron_h."""
    pattern = lookup(config, "hybrid_override_pattern")
    if not isinstance(pattern, str) or set(pattern) - KIND_OF_PATTERN_CHAR.keys():
        raise UserError(
            f"config.json: hybrid_override_pattern should be a string of "
            f"{' '.join(KIND_OF_PATTERN_CHAR)}, found {pattern!r}"
        )
    # num_hidden_layers is ignored by NemotronHConfig once the layers are named.
    return tuple(KIND_OF_PATTERN_CHAR[char] for char in pattern)


def every_nth(interval: str | int, others: LayerKind) -> LayerKinds:
    """Full attention at the layers n-1, 2n-1, ...; the rest are `others`.

    Args:
        interval: n, or the config key that holds it.
        others: the kind of the rest.
    """

    def kinds(config: Config) -> tuple[LayerKind, ...]:
        n = interval if isinstance(interval, int) else integer(config, interval)
        return tuple(
            others if (layer + 1) % n else LayerKind.FULL
            for layer in range(integer(config, "num_hidden_layers"))
        )

    return kinds


def if_windowed(rule: LayerKinds) -> LayerKinds:
    """As `rule`, but all full where the config has no `sliding_window`; exaone4."""
    return lambda config: rule(config) if lookup(config, "sliding_window") else all_full(config)


def first_of_four(config: Config) -> tuple[LayerKind, ...]:
    """Full attention at the layers 0, 4, 8, ..., a window in the rest; cwm."""
    return tuple(
        LayerKind.SLIDING if layer % 4 else LayerKind.FULL
        for layer in range(integer(config, "num_hidden_layers"))
    )


def last_is_full(rule: LayerKinds) -> LayerKinds:
    """As `rule`, but the last layer attends to the whole context; gemma4 (Gemma4TextConfig)."""
    return lambda config: (*rule(config)[:-1], LayerKind.FULL)


def all_but(key: str) -> LayerKinds:
    """Full attention in all layers but the listed ones, which read an image only; mllama."""

    def kinds(config: Config) -> tuple[LayerKind, ...]:
        others = integer_list(config, key)
        return tuple(
            LayerKind.NONE if layer in others else LayerKind.FULL
            for layer in range(integer(config, "num_hidden_layers"))
        )

    return kinds


def without_rope(config: Config) -> tuple[int, ...]:
    """Return the layers whose entry in `no_rope_layers` is 0 (1 means that they do rotate).

    Without the list it is every `no_rope_layer_interval`-th; smollm3, llama4.
    """
    layers = integer(config, "num_hidden_layers")
    if lookup(config, "no_rope_layers"):
        marks = integer_list(config, "no_rope_layers")
        return tuple(layer for layer, rotates in enumerate(marks[:layers]) if not rotates)
    interval = integer(config, "no_rope_layer_interval")
    return tuple(range(interval - 1, layers, interval))


def window_without_rope(config: Config) -> tuple[LayerKind, ...]:
    """A window in the layers that do not rotate, if `use_sliding_window`; SmolLM3Config."""
    slides = bool(lookup(config, "use_sliding_window")) and bool(lookup(config, "sliding_window"))
    chosen = without_rope(config) if slides else ()
    return tuple(
        LayerKind.SLIDING if layer in chosen else LayerKind.FULL
        for layer in range(integer(config, "num_hidden_layers"))
    )


def chunks_with_rope(config: Config) -> tuple[LayerKind, ...]:
    """Chunked attention in the layers that rotate; Llama4TextConfig."""
    full = without_rope(config)
    return tuple(
        LayerKind.FULL if layer in full else LayerKind.SLIDING
        for layer in range(integer(config, "num_hidden_layers"))
    )


def period_and_offset(config: Config) -> tuple[LayerKind, ...]:
    """Full attention where layer % attn_layer_period == attn_layer_offset; jamba."""
    period = integer(config, "attn_layer_period")
    offset = lookup(config, "attn_layer_offset")
    return tuple(
        LayerKind.FULL if layer % period == offset else LayerKind.LINEAR
        for layer in range(integer(config, "num_hidden_layers"))
    )


def by_indices(key: str, otherwise: LayerKinds | None = None) -> LayerKinds:
    """Full attention at the listed layers, a linear mixer elsewhere.

    Args:
        key: config key of the list.
        otherwise: the rule where the list is absent; None means no softmax layer at all.
    """

    def kinds(config: Config) -> tuple[LayerKind, ...]:
        if lookup(config, key) is None and otherwise is not None:
            return otherwise(config)
        indices = integer_list(config, key) if lookup(config, key) is not None else []
        return _at(indices, integer(config, "num_hidden_layers"), LayerKind.FULL, key)

    return kinds


def _at(indices: Sequence[int], layers: int, kind: LayerKind, key: str) -> tuple[LayerKind, ...]:
    if outside := [index for index in indices if not 0 <= index < layers]:
        raise UserError(f"config.json: {key} names layers {outside}, but there are {layers} layers")
    return tuple(kind if layer in indices else LayerKind.LINEAR for layer in range(layers))


def upper_layers_slide(config: Config) -> tuple[LayerKind, ...]:
    """Layers from `max_window_layers` on have a window, if `use_sliding_window`; qwen2, qwen3.

    `max_window_layers` counts the layers below which attention stays full, despite its name
    (Qwen2Config.__post_init__).
    """
    layers = integer(config, "num_hidden_layers")
    slides = bool(lookup(config, "use_sliding_window")) and bool(lookup(config, "sliding_window"))
    first = lookup(config, "max_window_layers") if slides else layers
    if not isinstance(first, int):
        raise UserError(f"config.json: max_window_layers should be a number, found {first!r}")
    return tuple(LayerKind.SLIDING if layer >= first else LayerKind.FULL for layer in range(layers))


def upper_layers_slide_if_window(config: Config) -> tuple[LayerKind, ...]:
    """As upper_layers_slide, wherever there is a `sliding_window`; Dots1Config."""
    return upper_layers_slide({**config, "use_sliding_window": True})


def lower_even_layers_slide(config: Config) -> tuple[LayerKind, ...]:
    """Even layers below `max_window_layers` have a window (Qwen2MoeConfig.__post_init__)."""
    slides = bool(lookup(config, "use_sliding_window")) and bool(lookup(config, "sliding_window"))
    below = integer(config, "max_window_layers") if slides else 0
    return tuple(
        LayerKind.SLIDING if layer % 2 == 0 and layer < below else LayerKind.FULL
        for layer in range(integer(config, "num_hidden_layers"))
    )


def attn_type_list(config: Config) -> tuple[LayerKind, ...]:
    """1 is softmax, 0 lightning attention; MiniMax-Text-01's remote code."""
    types = integer_list(config, "attn_type_list")
    kinds = tuple(LayerKind.FULL if kind == 1 else LayerKind.LINEAR for kind in types)
    return _counted(config, "attn_type_list", kinds)


def cycled_blocks(config: Config) -> tuple[LayerKind, ...]:
    """`block_types` repeated over the layers; recurrent_gemma, whose attention is always local."""
    blocks = string_list(config, "block_types")
    if not blocks:
        raise UserError("config.json: block_types names no blocks")
    return tuple(
        LayerKind.SLIDING if blocks[layer % len(blocks)] == "attention" else LayerKind.LINEAR
        for layer in range(integer(config, "num_hidden_layers"))
    )


def attn_dict(config: Config) -> tuple[LayerKind, ...]:
    """`attn: {layers: [...], window_size: ...}`; the hybrids of flash-linear-attention."""
    attn = lookup(config, "attn")
    if attn is None:
        return (LayerKind.LINEAR,) * integer(config, "num_hidden_layers")
    if not isinstance(attn, Mapping):
        # fla/models/hybrid.py also takes a list of these, each with its own heads and window.
        raise UserError("config.json: attn should be one specification, a list is not supported")
    kind = LayerKind.FULL if lookup(config, "attn.window_size") is None else LayerKind.SLIDING
    indices = integer_list(config, "attn.layers")
    return _at(indices, integer(config, "num_hidden_layers"), kind, "attn.layers")
