"""Compute the size of a model from its config, without weights and without torch.

Shapes: M hidden size, I MLP size, V vocabulary, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from amnesia_bench.config.load import load_model_file
from amnesia_bench.costs.mixer_shapes import JetMixerShape, LightningMixerShape, SoftmaxMixerShape
from amnesia_bench.errors import UserError
from amnesia_bench.weights.config_keys import (
    integer,
    number,
    optional_integer,
    string_list,
)

# Model types with softmax attention and a gated MLP in every layer.
_SOFTMAX_ONLY = ("llama", "mistral", "qwen2", "qwen3")
_SUPPORTED = ("hypenet", "jet_nemotron", "gemma3_text", *_SOFTMAX_ONLY)
_SLIDING = ("swa", "sliding_attention")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The number of layers of a model and their sizes.

    Attributes:
        hidden, mlp, vocab: M, I and V.
        tied: whether the head shares the weights of the embeddings.
        layer_norms: the number of norms of the hidden state in each layer.
        softmax: the mixer of the softmax layers: `softmax_layers` layers attend to the complete
            sequence, `sliding_layers` layers to a window of `window` tokens.
        linear: the mixer of the `linear_layers` other layers; None if the architecture has none.
    """

    hidden: int
    mlp: int
    vocab: int
    tied: bool
    softmax: SoftmaxMixerShape
    softmax_layers: int
    sliding_layers: int = 0
    window: int = 0
    linear: LightningMixerShape | JetMixerShape | None = None
    linear_layers: int = 0
    layer_norms: int = 2

    @property
    def layers(self) -> int:
        return self.softmax_layers + self.sliding_layers + self.linear_layers

    @property
    def embedding(self) -> int:
        """The number of parameters of the embeddings, and also of the head."""
        return self.vocab * self.hidden

    @property
    def widest(self) -> int:
        """The largest total width of all heads among the mixers."""
        return max(self.softmax.width, self.linear.width if self.linear else 0)

    @property
    def block_rest(self) -> int:
        """The number of parameters of a layer without its mixer: those of the MLP and the norms."""
        return 3 * self.hidden * self.mlp + self.layer_norms * self.hidden

    @property
    def largest_block(self) -> int:
        mixers = [self.softmax.parameters] * bool(self.softmax_layers + self.sliding_layers)
        mixers += [self.linear.parameters] * bool(self.linear_layers) if self.linear else []
        return self.block_rest + max(mixers)

    @property
    def body(self) -> int:
        """The number of parameters of all layers and the final norm."""
        mixers = (self.softmax_layers + self.sliding_layers) * self.softmax.parameters
        if self.linear is not None:
            mixers += self.linear_layers * self.linear.parameters
        return mixers + self.layers * self.block_rest + self.hidden

    @property
    def parameters(self) -> int:
        return self.body + self.embedding * (1 if self.tied else 2)

    @property
    def routing(self) -> int:
        """The number of parameters of W_Q and W_K in the softmax layers without a window."""
        heads = self.softmax.heads + self.softmax.kv_heads
        return self.softmax_layers * self.hidden * heads * self.softmax.head_dim

    def mixing_flops(self, tokens: int) -> float:
        """Return the mean forward FLOPs per token of mixing, in a sequence of `tokens` tokens.

        Products with weights are not counted. Softmax layers compute the logits and the weighted
        sum over the mean number of visible tokens. Linear layers update and read their state.
        """
        return self._mixing(_mean_visible(tokens, tokens), _mean_visible(tokens, self.window))

    def mixing_flops_at(self, tokens: int) -> float:
        """Return the same FLOPs for one new token after a context of `tokens` tokens."""
        return self._mixing(tokens + 1, min(tokens + 1, self.window))

    def softmax_flops(self, tokens: int) -> float:
        """Return the part of `mixing_flops` in softmax layers, with and without a window."""
        return self._softmax(_mean_visible(tokens, tokens), _mean_visible(tokens, self.window))

    def _mixing(self, visible: float, visible_sliding: float) -> float:
        linear = self.linear_layers * self.linear.flops if self.linear else 0.0
        return self._softmax(visible, visible_sliding) + linear

    def _softmax(self, visible: float, visible_sliding: float) -> float:
        full = self.softmax_layers * self.softmax.flops(visible)
        return full + self.sliding_layers * self.softmax.flops(visible_sliding)

    def cache_bytes(self, tokens: int) -> float:
        """Return the bytes of one sequence's cache: 16-bit keys and values, float32 states."""
        cached_tokens = self.softmax_layers * tokens + self.sliding_layers * min(
            tokens, self.window
        )
        states = self.linear_layers * self.linear.state if self.linear else 0
        return 2.0 * cached_tokens * self.softmax.cached + 4.0 * states


def _mean_visible(tokens: int, window: int) -> float:
    """Return the mean number of tokens that a token attends to, including itself."""
    limit = min(tokens, window)
    return limit - limit * (limit - 1) / (2 * tokens)


def read_model_shape(config: Mapping[str, object]) -> ModelShape:
    """Return the shape of a model from its config: a config.json or a config of configs/model.

    Raises:
        UserError: the architecture is not supported.
    """
    kind = config.get("model_type")
    if kind not in _SUPPORTED:
        raise UserError(
            f"model_type {kind!r}: the size of such a model cannot be estimated",
            hint=f"Supported: {', '.join(_SUPPORTED)}.",
        )
    heads = integer(config, "num_attention_heads")
    hidden = integer(config, "hidden_size")
    softmax = SoftmaxMixerShape(
        hidden=hidden,
        heads=heads,
        kv_heads=optional_integer(config, "num_key_value_heads") or heads,
        head_dim=optional_integer(config, "head_dim") or hidden // heads,
        gated=bool(config.get("attn_use_output_gate", False)),
        norms=kind in ("hypenet", "qwen3", "gemma3_text"),
        biases=kind in ("jet_nemotron", "qwen2"),
    )
    linear: LightningMixerShape | JetMixerShape | None = None
    kinds, window = ["attn"] * integer(config, "num_hidden_layers"), 0
    if kind == "hypenet":
        linear = _lightning(config, softmax)
        kinds = string_list(config, "mixer_types") if config.get("mixer_types") else kinds
    elif kind == "jet_nemotron":
        linear, kinds = _jet(config, hidden), string_list(config, "layer_types")
        window = integer(config, "efficient_attention_config.swa.window_size")
    elif kind == "gemma3_text":
        kinds, window = string_list(config, "layer_types"), integer(config, "sliding_window")
    sliding = sum(kind in _SLIDING for kind in kinds)
    full = kinds.count("attn") + kinds.count("full_attention")
    return ModelShape(
        hidden=hidden,
        mlp=integer(config, "intermediate_size"),
        vocab=integer(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        softmax=softmax,
        softmax_layers=full,
        sliding_layers=sliding,
        window=window,
        linear=linear,
        linear_layers=len(kinds) - full - sliding,
        layer_norms=4 if kind == "gemma3_text" else 2,
    )


def _lightning(config: Mapping[str, object], softmax: SoftmaxMixerShape) -> LightningMixerShape:
    heads = optional_integer(config, "lightning_nh") or softmax.heads
    return LightningMixerShape(
        hidden=softmax.hidden,
        heads=heads,
        kv_heads=optional_integer(config, "lightning_nkv") or heads,
        head_dim=optional_integer(config, "lightning_head_dim") or softmax.head_dim,
    )


def _jet(config: Mapping[str, object], hidden: int) -> JetMixerShape:
    block = "efficient_attention_config.jet"
    key_dim = integer(config, f"{block}.head_dim")
    return JetMixerShape(
        hidden=hidden,
        heads=integer(config, f"{block}.num_heads"),
        key_dim=key_dim,
        # expand_v is 2.6666666667 in the published config
        value_dim=round(key_dim * number(config, f"{block}.expand_v")),
        kernel=integer(config, f"{block}.conv_size"),
        generator_reduction=integer(config, f"{block}.dconv_generator_reduction"),
    )


@cache  # loading a config takes 50 ms, and many stages have the same shape
def named_shape(model: str) -> ModelShape:
    """Return the shape of the model whose config in configs/model has this name."""
    return read_model_shape(load_model_file(model))
