"""Read typed values from a raw config.json; a missing or malformed value raises `UserError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amnesia_bench.errors import UserError

Config = Mapping[str, object]
LARGEST_INTEGER = 1 << 53  # integers below it are exact in every JSON parser (RFC 8259, 6)
# Keys under which multimodal wrappers store the config of the decoder. In order, they are the keys
# of transformers, of Qwen-Omni, of the remote code of InternVL and Nemotron, and of DeepSeek-VL2.
DECODER_KEYS = ("text_config", "thinker_config", "llm_config", "language_config")


def lookup(config: Config, key: str) -> object | None:
    """Return the value of a dotted key ("attn.num_heads"), or None if it is absent or null."""
    value: object = config
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def decoder_config(config: Config) -> Config:
    """Return the decoder's config if `config` is that of a multimodal wrapper, else `config`.

    If the decoder's config has no `model_type`, it gets the wrapper's.
    """
    for key in DECODER_KEYS:
        inner = config.get(key)
        if isinstance(inner, Mapping):
            named = {"model_type": config.get("model_type"), **inner}
            return decoder_config(named)
    return config


def integer(config: Config, key: str) -> int:
    """Return the value of `key`, a positive whole number.

    Raises:
        UserError: the key is missing, or its value is not a positive whole number below 2^53.
    """
    value = lookup(config, key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < LARGEST_INTEGER:
        raise UserError(
            f"config.json: {key} should be a positive whole number, found {value!r}",
            hint="check that this is the config.json the checkpoint was saved with",
        )
    return value


def optional_integer(config: Config, key: str) -> int | None:
    """Return the value of `key`, a positive whole number; None if it is absent or null."""
    return None if lookup(config, key) is None else integer(config, key)


def number(config: Config, key: str) -> float:
    """Return the value of `key`, a positive number.

    Raises:
        UserError: the key is missing, or its value is not a positive number.
    """
    value = lookup(config, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"config.json: {key} should be a positive number, found {value!r}")
    return float(value)


def string_list(config: Config, key: str) -> list[str]:
    """Return the value of `key`, a list of strings.

    Raises:
        UserError: the key is missing, or its value is not a list of strings.
    """
    value = lookup(config, key)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise UserError(f"config.json: {key} should be a list of strings, found {value!r}")
    return list(value)


def integer_list(config: Config, key: str) -> list[int]:
    """Return the value of `key`, a list of whole numbers.

    Raises:
        UserError: the key is missing, or its value is not a list of whole numbers.
    """
    value = lookup(config, key)
    if not isinstance(value, Sequence) or not all(isinstance(item, int) for item in value):
        raise UserError(f"config.json: {key} should be a list of layer indices, found {value!r}")
    return list(value)
