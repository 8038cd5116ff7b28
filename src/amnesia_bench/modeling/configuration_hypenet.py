"""The config of HypeNet: the keys of the official `config.json`, with checks of their values.

Source of the keys and of their defaults: thunlp/hybrid-linear-attention @229e301. Only the value of
`attn_logits_scaling` is stored in another form, as a number; see `HypeNetConfig`.
"""

# This module must not use `from __future__ import annotations`: it turns annotations into strings,
# which `strict` does not check.
import math
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

SOFTMAX_MIXERS = ("attn",)
LIGHTNING_MIXERS = ("lightning-attn", "lightning_attn")
# The value of a in the official code if attn_logits_scaling is "hype" without a number.
DEFAULT_LOGIT_SCALE_A = 362.0
_LIGHTNING_SCALES = ("1/sqrt(d)", "1/d", "1")
_LOGIT_SCALES = ("attn_logit_scale_a", "attn_logit_multiplier")
# Attributes that are not written to config.json, since attn_logits_scaling contains their value.
_NOT_WRITTEN = (*_LOGIT_SCALES, "_logit_scale_text")


def parse_logits_scaling(value: object) -> tuple[float | None, float | None]:
    """Parse the value of the official key `attn_logits_scaling`.

    Args:
        value: with None, queries are not scaled. With "hype <a>", or "hype" (a = 362), the query at
            0-based position t is multiplied by ln(t + a) / ln(a). With a float, every query is
            multiplied by that float.

    Returns:
        (a, constant multiplier); at most one of them is not None.

    Raises:
        InvalidModelInputError: the value has another form; the message contains the key.
    """
    if value is None:
        return None, None
    if isinstance(value, float):
        return None, value
    parts = value.split() if isinstance(value, str) else []
    if parts and parts[0] == "hype" and len(parts) <= 2:
        try:
            return (float(parts[1]) if len(parts) == 2 else DEFAULT_LOGIT_SCALE_A), None
        except ValueError:
            pass
    raise InvalidModelInputError(
        f"attn_logits_scaling is {value!r}",
        hint='Write null, "hype <a>" such as "hype 500", or a float that multiplies each query.',
    )


@strict
class HypeNetConfig(PreTrainedConfig):
    """The shape and options of a HypeNet, with the keys and defaults of official checkpoints.

    `mixer_types` has one entry per layer: "attn" for a softmax layer, or "lightning-attn" (also
    spelled "lightning_attn") for a linear layer. If it is empty, all layers are softmax layers.
    `layer_types` ("full_attention", "linear_attention") is derived from it and not written to
    files.

    The inference-time logit scale of the softmax layers is either the number `attn_logit_scale_a`
    (a in ln(t + a) / ln(a), arXiv 2601.22156) or the constant `attn_logit_multiplier`. In files,
    and in dicts with the keys of files, the key `attn_logits_scaling` contains it: "hype 500",
    "hype", a float or null. A text is written back unchanged unless the number has changed.

    Raises:
        InvalidModelInputError: a value is invalid, for example an unknown mixer, a list of the
            wrong length or an indivisible number of heads; the message starts with the key.
    """

    model_type = "hypenet"
    softmax_qk_norm = True
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers' interface
    base_model_tp_plan = {  # noqa: RUF012 - transformers' interface
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    head_dim: int | None = 128
    mixer_types: list[str] | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    attn_use_rope: bool = True
    attn_use_output_gate: bool = False
    attn_logit_scale_a: float | int | None = None
    attn_logit_multiplier: float | None = None
    lightning_use_qk_norm: bool = False
    lightning_use_output_gate: bool = False
    lightning_use_output_norm: bool = False
    lightning_use_rope: bool = True
    lightning_use_short_conv: bool = False
    lightning_nh: int | None = None
    lightning_nkv: int | None = None
    lightning_head_dim: int | None = None
    lightning_scale: str = "1/sqrt(d)"
    expand_kv_proj: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._logit_scale_text: str | None = None
        if (text := kwargs.pop("attn_logits_scaling", None)) is not None:
            self.attn_logits_scaling = text
        # A file may contain the attention implementation of its author's machine; it is ignored.
        kwargs.pop("_attn_implementation", None)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            check_divides(
                "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads
            )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.lightning_nh is None:
            self.lightning_nh = self.num_attention_heads
        if self.lightning_nkv is None:
            self.lightning_nkv = self.num_key_value_heads
        if self.lightning_head_dim is None:
            self.lightning_head_dim = self.head_dim
        self.mixer_types = list(self.mixer_types or ["attn"] * self.num_hidden_layers)
        self._check_mixers(kwargs.pop("layer_types", None))
        self._check_shapes()
        # These dicts are copied, since they may be the caller's and transformers modifies them.
        if kwargs.get("rope_scaling"):
            kwargs["rope_scaling"] = dict(kwargs["rope_scaling"])
        if self.rope_parameters is not None:
            self.rope_parameters = dict(self.rope_parameters)
        super().__post_init__(**kwargs)
        check_rope_parameters(self.rope_parameters)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "HypeNetConfig":
        """Build a config from official keys; keyword arguments of `from_pretrained` override them.

        transformers would set the overrides on the finished config, after its checks. Here they are
        checked like all other keys.
        """
        keys = {*HypeNetConfig.__annotations__, "attn_logits_scaling", "layer_types"}
        changes = {key: kwargs.pop(key) for key in keys & kwargs.keys()}
        if any(key in changes for key in _LOGIT_SCALES):
            config_dict = {k: v for k, v in config_dict.items() if k != "attn_logits_scaling"}
        config: HypeNetConfig = super().from_dict({**config_dict, **changes}, **kwargs)
        return config

    @property
    def layer_types(self) -> list[str]:
        """The kind of attention in each layer, with the names that transformers uses."""
        return [
            "full_attention" if mixer in SOFTMAX_MIXERS else "linear_attention"
            for mixer in self.mixer_types or ()
        ]

    @property
    def attn_logits_scaling(self) -> str | float | None:
        """The logit scale in the form in which official files contain it."""
        if self.attn_logit_scale_a is None:
            return self.attn_logit_multiplier
        text = self._logit_scale_text
        if text is not None and parse_logits_scaling(text)[0] == self.attn_logit_scale_a:
            return text
        return f"hype {self.attn_logit_scale_a:.12g}"

    @attn_logits_scaling.setter
    def attn_logits_scaling(self, value: str | float | None) -> None:
        self.attn_logit_scale_a, self.attn_logit_multiplier = parse_logits_scaling(value)
        self._logit_scale_text = value if isinstance(value, str) else None

    @property
    def lightning_scale_value(self) -> float:
        """The factor by which the linear layers multiply q."""
        assert self.lightning_head_dim is not None
        exponent = {"1/sqrt(d)": -0.5, "1/d": -1.0, "1": 0.0}[self.lightning_scale]
        return float(self.lightning_head_dim**exponent)

    @property
    def uses_positions(self) -> bool:
        """Whether any layer rotates by position, so that `max_position_embeddings` is a limit."""
        return self.attn_use_rope or self.lightning_use_rope

    @property
    def softmax_biases(self) -> tuple[bool, bool]:
        """Whether softmax layers have biases on q, k and v, and on the output."""
        return self.attention_bias, self.attention_bias

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        """The 0-based indices of the softmax layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "full_attention")

    def to_dict(self) -> dict[str, Any]:
        """Return a dict with the official keys, which the authors' code can also read."""
        scaling = self.attn_logits_scaling
        # super().to_dict() copies all of __dict__, including the private text, which is removed.
        output: dict[str, Any] = super().to_dict()
        for key in _NOT_WRITTEN:
            output.pop(key, None)
        output["attn_logits_scaling"] = scaling
        return output | rope_keys_of_files(self.rope_parameters)

    def _check_mixers(self, layer_types: list[str] | None) -> None:
        assert self.mixer_types is not None
        if len(self.mixer_types) != self.num_hidden_layers:
            raise InvalidModelInputError(
                f"mixer_types has {len(self.mixer_types)} entries, but num_hidden_layers is "
                f"{self.num_hidden_layers}",
                hint="Give one mixer per layer.",
            )
        for layer, mixer in enumerate(self.mixer_types):
            if mixer not in SOFTMAX_MIXERS + LIGHTNING_MIXERS:
                raise InvalidModelInputError(
                    f"mixer_types[{layer}] is {mixer!r}, which is not a mixer of this model",
                    hint=f"Use one of {', '.join(SOFTMAX_MIXERS + LIGHTNING_MIXERS)}.",
                )
        if layer_types is not None and list(layer_types) != self.layer_types:
            raise InvalidModelInputError(
                f"layer_types is {layer_types}, but mixer_types implies {self.layer_types}",
                hint="Leave layer_types out; it follows from mixer_types.",
            )
        if self.lightning_use_short_conv:
            raise InvalidModelInputError(
                "lightning_use_short_conv is true; no published HypeNet has short convolutions",
                hint="Set lightning_use_short_conv to false.",
            )

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
            "lightning_nh",
            "lightning_nkv",
            "lightning_head_dim",
        )
        check_positive(self, keys)
        for heads, groups in (
            ("num_attention_heads", "num_key_value_heads"),
            ("lightning_nh", "lightning_nkv"),
        ):
            check_divides(heads, getattr(self, heads), groups, getattr(self, groups))
        for switch, key in (
            ("attn_use_rope", "head_dim"),
            ("lightning_use_rope", "lightning_head_dim"),
        ):
            if getattr(self, switch) and getattr(self, key) % 2:
                raise InvalidModelInputError(
                    f"{key} is {getattr(self, key)}; RoPE rotates pairs",
                    hint=f"Use an even {key}, or set {switch} to false.",
                )
        check_activation(self.hidden_act)
        if self.lightning_scale not in _LIGHTNING_SCALES:
            raise InvalidModelInputError(
                f"lightning_scale is {self.lightning_scale!r}",
                hint=f"Use one of {', '.join(map(repr, _LIGHTNING_SCALES))}.",
            )
        self._check_logit_scale()

    def _check_logit_scale(self) -> None:
        a, constant = self.attn_logit_scale_a, self.attn_logit_multiplier
        if a is not None and constant is not None:
            raise InvalidModelInputError(
                "attn_logit_scale_a and attn_logit_multiplier are both set",
                hint="Set at most one of them.",
            )
        if constant is not None and not math.isfinite(constant):
            raise InvalidModelInputError(
                f"attn_logits_scaling is {constant}; it multiplies each query"
            )
        if a is not None and not (math.isfinite(a) and a > 1):
            raise InvalidModelInputError(
                f"attn_logit_scale_a is {a}; ln(t + a) / ln(a) needs a finite a above 1",
                hint="Use the value the checkpoint was evaluated with, such as 500.",
            )
