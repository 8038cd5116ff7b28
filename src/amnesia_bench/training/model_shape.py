"""How large a model is, from its config alone: no weights, no torch.

Shapes: M hidden size, I MLP size, V vocabulary, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml  # type: ignore[import-untyped]

from amnesia_bench.config.load import config_dir
from amnesia_bench.errors import UserError
from amnesia_bench.weights.config_keys import integer, optional_integer

# Softmax attention in every layer, a gated MLP, no biases that count.
_PLAIN = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Layers and sizes of a HypeNet, or of a model of softmax layers only.

    `gated` says whether softmax layers have an output gate; `norms` whether queries and keys are
    normalised.
    """

    hidden: int
    mlp: int
    vocab: int
    query_heads: int
    kv_heads: int
    head_dim: int
    softmax_layers: int
    linear_layers: int
    linear_heads: int
    linear_kv_heads: int
    linear_head_dim: int
    tied: bool
    gated: bool
    norms: bool

    @property
    def layers(self) -> int:
        return self.softmax_layers + self.linear_layers

    @property
    def embedding(self) -> int:
        """Parameters of the embeddings, and of the head as well."""
        return self.vocab * self.hidden

    @property
    def softmax_mixer(self) -> int:
        """Parameters of one softmax mixer."""
        wide, narrow = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        norms = 2 * self.head_dim if self.norms else 0
        return self.hidden * (2 * wide + 2 * narrow + self.gated * wide) + norms

    @property
    def linear_mixer(self) -> int:
        """Parameters of one lightning mixer, with its gate and norms."""
        wide = self.linear_heads * self.linear_head_dim
        narrow = self.linear_kv_heads * self.linear_head_dim
        return self.hidden * (3 * wide + 2 * narrow) + wide + 2 * self.linear_head_dim

    @property
    def block_rest(self) -> int:
        """Parameters of a layer besides its mixer."""
        return 3 * self.hidden * self.mlp + 2 * self.hidden

    @property
    def largest_block(self) -> int:
        mixers = [self.softmax_mixer] * bool(self.softmax_layers)
        mixers += [self.linear_mixer] * bool(self.linear_layers)
        return self.block_rest + max(mixers)

    @property
    def body(self) -> int:
        """Parameters of all layers and the final norm."""
        mixers = self.softmax_layers * self.softmax_mixer + self.linear_layers * self.linear_mixer
        return mixers + self.layers * self.block_rest + self.hidden

    @property
    def parameters(self) -> int:
        return self.body + self.embedding * (1 if self.tied else 2)

    @property
    def routing(self) -> int:
        """Parameters of W_Q and W_K in the softmax layers."""
        heads = self.query_heads + self.kv_heads
        return self.softmax_layers * self.hidden * heads * self.head_dim

    def mixing_flops(self, tokens: int) -> float:
        """Forward FLOPs per token that are no product with a weight, in sequences of `tokens`.

        Softmax: the logits and the weighted sum over half the sequence. Lightning attention: the
        update of its state and the read-out.
        """
        softmax = 4 * self.query_heads * self.head_dim * (tokens + 1) / 2
        linear = 4 * self.linear_heads * self.linear_head_dim**2
        return self.softmax_layers * softmax + self.linear_layers * linear


def shape_of(config: Mapping[str, object]) -> ModelShape:
    """Read the shape from a config.json, or from a file of configs/model.

    Raises:
        UserError: an architecture whose shape is not known here.
    """
    kind = config.get("model_type")
    if kind != "hypenet" and kind not in _PLAIN:
        raise UserError(
            f"model_type {kind!r}: its size cannot be estimated",
            hint=f"Known: hypenet, {', '.join(_PLAIN)}.",
        )
    query = integer(config, "num_attention_heads")
    kv = optional_integer(config, "num_key_value_heads") or query
    hidden = integer(config, "hidden_size")
    dim = optional_integer(config, "head_dim") or hidden // query
    layers = integer(config, "num_hidden_layers")
    mixers = config.get("mixer_types") if kind == "hypenet" else None
    softmax = mixers.count("attn") if isinstance(mixers, list) else layers
    nh = optional_integer(config, "lightning_nh") or query
    return ModelShape(
        hidden=hidden,
        mlp=integer(config, "intermediate_size"),
        vocab=integer(config, "vocab_size"),
        query_heads=query,
        kv_heads=kv,
        head_dim=dim,
        softmax_layers=softmax,
        linear_layers=layers - softmax,
        linear_heads=nh,
        linear_kv_heads=optional_integer(config, "lightning_nkv") or nh,
        linear_head_dim=optional_integer(config, "lightning_head_dim") or dim,
        tied=bool(config.get("tie_word_embeddings", False)),
        gated=bool(config.get("attn_use_output_gate", False)),
        norms=kind in ("hypenet", "qwen3"),
    )


def named_shape(model: str) -> ModelShape:
    """Return the shape of a file of configs/model."""
    path = config_dir() / "model" / f"{model}.yaml"
    if not path.is_file():
        raise UserError(f"model {model}: no such file in {path.parent}")
    return shape_of(yaml.safe_load(path.read_text(encoding="utf-8")))
