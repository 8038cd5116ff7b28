"""The config of Jet-Nemotron: the keys of NVlabs' `config.json`, with checks of their values.

Source of the keys and of their defaults: NVlabs/Jet-Nemotron @94cbd12,
jetai/modeling/hf/configuration_jet_nemotron.py and jet_block.py.
"""

# This module must not use `from __future__ import annotations`: it turns annotations into strings,
# which `strict` does not check.
import copy
import math
from dataclasses import dataclass, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .config_checks import (
    check_activation,
    check_divides,
    check_positive,
    check_rope_parameters,
    rope_keys_of_files,
)
from .input_errors import InvalidModelInputError

# The words of NVlabs' files for the kinds of layer, and those of transformers.
LAYER_WORDS = {
    "attn": "full_attention",
    "swa": "sliding_attention",
    "jet": "linear_attention",
}
_BLOCK = "efficient_attention_config"
# How the authors' code runs a JetBlock; the result is the same.
_IMPLEMENTATION_KEYS = ("mode", "dconv_implementation")


@dataclass(frozen=True)
class JetBlockShape:
    """The values of `efficient_attention_config.jet`; defaults are those of the authors' code."""

    num_heads: int = 6
    head_dim: int = 256
    expand_v: float = 2.0
    conv_size: int = 4
    dconv_generator_reduction: int | None = None
    norm_eps: float = 1e-5

    @property
    def value_dim(self) -> int:
        """The number of channels of one value head: head_dim * expand_v."""
        return round(self.head_dim * self.expand_v)

    @property
    def width(self) -> int:
        """The number of channels of all value heads together."""
        return self.num_heads * self.value_dim

    @property
    def generator_dim(self) -> int:
        """The inner width of the generator of convolution kernels."""
        return self.width // (self.dconv_generator_reduction or 1)


@strict
class JetNemotronConfig(PreTrainedConfig):
    """The shape of a Jet-Nemotron, with the keys and defaults of NVlabs' checkpoints.

    The key `layer_types` has one entry per layer: "jet", "attn" or "swa" in files, or the names of
    transformers for the same kinds. The attribute has the names of transformers, and files are
    written with the words of NVlabs' code, which reads no others.

    Raises:
        InvalidModelInputError: a value is unknown, invalid or contradicts another; the message
            starts with the key.
    """

    model_type = "jet_nemotron"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers' interface
    # Properties of every Jet-Nemotron, which the shared modules read from a config.
    attn_use_output_gate = False
    softmax_qk_norm = False
    softmax_biases = (True, False)
    uses_positions = True

    vocab_size: int = 151936
    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    num_key_value_heads: int | None = 2
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = True
    rope_parameters: dict[str, Any] | None = None
    attention_dropout: float | int = 0.0
    efficient_attention_config: dict[str, Any] | None = None
    use_mrope: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    # The base period of the authors' config class, for files without rope_theta.
    default_theta = 1000000.0

    def __post_init__(self, **kwargs: Any) -> None:
        self._layer_words = self._words_of(kwargs.pop("layer_types", None))
        # A file may contain the attention implementation of its author's machine; it is ignored.
        kwargs.pop("_attn_implementation", None)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            check_divides(
                "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads
            )
            self.head_dim = self.hidden_size // self.num_attention_heads
        # These dicts are copied, since they may be the caller's and transformers modifies them.
        self.efficient_attention_config = copy.deepcopy(self.efficient_attention_config)
        if kwargs.get("rope_scaling"):
            kwargs["rope_scaling"] = dict(kwargs["rope_scaling"])
        if self.rope_parameters is not None:
            self.rope_parameters = dict(self.rope_parameters)
        self._check_shapes()
        super().__post_init__(**kwargs)
        check_rope_parameters(self.rope_parameters)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "JetNemotronConfig":
        """Build a config from NVlabs' keys; keyword arguments of `from_pretrained` override them.

        transformers would set the overrides on the finished config, after its checks. Here they are
        checked like all other keys.
        """
        keys = {*JetNemotronConfig.__annotations__, "layer_types"}
        changes = {key: kwargs.pop(key) for key in keys & kwargs.keys()}
        config: JetNemotronConfig = super().from_dict({**config_dict, **changes}, **kwargs)
        return config

    @property
    def layer_types(self) -> list[str]:
        """The kind of attention in each layer, with the names that transformers uses."""
        return [LAYER_WORDS[word] for word in self._layer_words]

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        """The 0-based indices of the softmax layers that see the whole context."""
        return tuple(i for i, word in enumerate(self._layer_words) if word == "attn")

    @property
    def window_size(self) -> int:
        """The number of tokens that a sliding-window layer attends to, including the token."""
        size = self._block("swa").get("window_size")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidModelInputError(
                f"{_BLOCK}.swa.window_size is {size!r}; layers with a sliding window need a "
                "positive whole number",
                hint="Jet-Nemotron-2B has 1152.",
            )
        return size

    @property
    def jet_block(self) -> JetBlockShape:
        """The shape of a JetBlock, from `efficient_attention_config.jet`."""
        block = self._block("jet")
        known = {field.name: field.type for field in fields(JetBlockShape)}
        if unknown := sorted(set(block) - set(known) - set(_IMPLEMENTATION_KEYS)):
            raise InvalidModelInputError(
                f"{_BLOCK}.jet.{unknown[0]} is not a key of a JetBlock",
                hint=f"Its keys are {', '.join((*known, *_IMPLEMENTATION_KEYS))}.",
            )
        reduction = block.get("dconv_generator_reduction", 8)
        values: dict[str, Any] = {
            key: _whole(key, block[key]) for key in ("num_heads", "head_dim", "conv_size")
            if key in block
        }  # fmt: skip
        if reduction is not None:
            reduction = _whole("dconv_generator_reduction", reduction)
        values |= {
            key: _number(key, block[key]) for key in ("expand_v", "norm_eps") if key in block
        }
        shape = JetBlockShape(**values, dconv_generator_reduction=reduction)
        exact = shape.head_dim * shape.expand_v
        # The published 2.6666666667 * 96 is not exactly 256.
        if not math.isclose(exact, shape.value_dim, rel_tol=1e-5) or shape.generator_dim < 1:
            raise InvalidModelInputError(
                f"{_BLOCK}.jet: head_dim {shape.head_dim} times expand_v {shape.expand_v} is "
                f"{exact:g}, and the kernel generator has a width of {shape.generator_dim}; both "
                "must be positive whole numbers",
            )
        return shape

    def to_dict(self) -> dict[str, Any]:
        """Return a dict with NVlabs' keys and words, which the authors' code can also read."""
        output: dict[str, Any] = super().to_dict()
        output.pop("_layer_words", None)
        output["layer_types"] = list(self._layer_words)
        return output | rope_keys_of_files(self.rope_parameters)

    def _block(self, name: str) -> dict[str, Any]:
        block = (self.efficient_attention_config or {}).get(name)
        if not isinstance(block, dict):
            raise InvalidModelInputError(
                f"{_BLOCK}.{name} is {block!r}, but layer_types has {name} layers",
                hint=f"Give the settings of {name} layers as a mapping.",
            )
        return block

    def _words_of(self, layer_types: object) -> list[str]:
        if layer_types is None:
            return ["attn"] * self.num_hidden_layers
        if not isinstance(layer_types, list | tuple):
            raise InvalidModelInputError(
                f"layer_types is {layer_types!r:.80}, not a list",
                hint="Give one of attn, swa and jet per layer.",
            )
        words = {name: word for word, name in LAYER_WORDS.items()}
        for layer, kind in enumerate(layer_types):
            if kind not in words and kind not in LAYER_WORDS:
                raise InvalidModelInputError(
                    f"layer_types[{layer}] is {kind!r}, which is not a layer of this model",
                    hint=f"Use one of {', '.join(LAYER_WORDS)}.",
                )
        if len(layer_types) != self.num_hidden_layers:
            raise InvalidModelInputError(
                f"layer_types has {len(layer_types)} entries, but num_hidden_layers is "
                f"{self.num_hidden_layers}",
                hint="Give one kind per layer.",
            )
        return [str(words.get(kind, kind)) for kind in layer_types]

    def _check_shapes(self) -> None:
        keys = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "max_position_embeddings",
            "rms_norm_eps",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        )
        check_positive(self, keys)
        assert self.num_key_value_heads is not None
        assert self.head_dim is not None
        check_divides(
            "num_attention_heads",
            self.num_attention_heads,
            "num_key_value_heads",
            self.num_key_value_heads,
        )
        if self.head_dim % 2:
            raise InvalidModelInputError(f"head_dim is {self.head_dim}; RoPE rotates pairs")
        if self.use_mrope:
            raise InvalidModelInputError(
                "use_mrope is true; no published Jet-Nemotron has multimodal RoPE",
                hint="Set use_mrope to false.",
            )
        check_activation(self.hidden_act)
        if unknown := sorted(set(self.efficient_attention_config or {}) - {"jet", "swa"}):
            raise InvalidModelInputError(
                f"{_BLOCK}.{unknown[0]} is not a kind of layer of this model",
                hint="Its keys are jet and swa.",
            )
        if "jet" in self._layer_words:
            _ = self.jet_block
        if "swa" in self._layer_words:
            _ = self.window_size


def _whole(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidModelInputError(
            f"{_BLOCK}.jet.{key} is {value!r}; it must be a positive whole number"
        )
    return value


def _number(key: str, value: object) -> float:
    """Return a positive number, which may be written as text: norm_eps is "1e-5" in the file."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not (math.isfinite(number) and number > 0):
        raise InvalidModelInputError(
            f"{_BLOCK}.jet.{key} is {value!r}; it must be a positive number"
        )
    return number
