"""Are weights the codes of a quantiser rather than numbers?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from amnesia_bench.errors import UserError
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.config_keys import decoder_config
from amnesia_bench.weights.numbers import FLOAT_DTYPES

_CONFIG_KEYS = ("quantization_config", "compression_config", "quant_method")
# What GPTQ and AWQ, compressed-tensors, FP8, bitsandbytes, HQQ, quanto and MXFP4 call their parts.
_SUFFIXES = (
    ".qweight",
    ".qzeros",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".absmax",
    ".quant_map",
    ".SCB",
    ".W_q",
    ".weight._data",
    "_proj_blocks",
    "_proj_scales",
)


def refuse_codes(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Raise UserError unless these tensors hold floating-point weights."""
    for name in names:
        _, entry = checkpoint.tensors[name]
        if entry.dtype not in FLOAT_DTYPES:
            raise quantised(checkpoint, f"{name!r} has dtype {entry.dtype}")


def sign_of_codes(checkpoint: Checkpoint) -> str | None:
    """Return what shows that some tensor is quantised, or None where all are plain numbers.

    The tensors decide and not the config, whose quantization_config often outlives them: merging a
    QLoRA adapter writes plain weights and keeps it. Integers may be buffers, such as position_ids
    and causal masks, unless they are called weights.
    """
    for name, (_, entry) in checkpoint.tensors.items():
        if name.endswith(_SUFFIXES):
            return f"it holds {name!r}"
        weight = entry.dtype.startswith("F") or name.endswith(".weight")
        if entry.dtype not in FLOAT_DTYPES and weight:
            return f"{name!r} has dtype {entry.dtype}"
    return None


def note_on_config(checkpoint: Checkpoint) -> str | None:
    """Return what to say of a config.json that speaks of quantisation; None where it does not."""
    configs: list[Mapping[str, object]] = [checkpoint.config, decoder_config(checkpoint.config)]
    keys = [key for key in _CONFIG_KEYS for config in configs if config.get(key)]
    if not keys:
        return None
    sign = sign_of_codes(checkpoint)
    if sign is not None:
        return (
            f"{checkpoint.folder}: some of its weights are quantised ({sign}); those that are "
            "restored are not, and the others stay as they are."
        )
    return (
        f"{checkpoint.folder}: config.json has {keys[0]}, but all weights are plain numbers, so it "
        "is taken for a leftover. Remove it if a loader quantises by it."
    )


def quantised(checkpoint: Checkpoint, sign: str) -> UserError:
    """Return the refusal of quantised weights."""
    return UserError(
        f"{checkpoint.folder}: holds quantised weights ({sign}).",
        hint="Give the same model before it was quantised, and quantise what is restored from it.",
    )
