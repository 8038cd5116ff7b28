"""Detect quantised weights, which are codes rather than the values of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from amnesia_bench.errors import UserError
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.config_keys import decoder_config
from amnesia_bench.weights.numbers import FLOAT_DTYPES

_CONFIG_KEYS = ("quantization_config", "compression_config", "quant_method")
# Endings of tensor names of GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes, HQQ, quanto, MXFP4.
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


def refuse_quantised(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Raise UserError unless the named tensors contain floating-point weights."""
    for name in names:
        _, entry = checkpoint.tensors[name]
        if entry.dtype not in FLOAT_DTYPES:
            raise quantised_weights_error(checkpoint, f"{name!r} has dtype {entry.dtype}")


def quantisation_evidence(checkpoint: Checkpoint) -> str | None:
    """Describe a tensor that shows that the weights are quantised, or return None if none does.

    The evidence is the name or dtype of a tensor. The config is ignored, because its
    quantization_config is often stale: merging a QLoRA adapter writes plain weights but keeps the
    key. The dtype of an integer tensor counts only if its name ends in ".weight"; otherwise the
    tensor may be a buffer, such as position_ids or a causal mask.
    """
    for name, (_, entry) in checkpoint.tensors.items():
        if name.endswith(_SUFFIXES):
            return f"it holds {name!r}"
        weight = entry.dtype.startswith("F") or name.endswith(".weight")
        if entry.dtype not in FLOAT_DTYPES and weight:
            return f"{name!r} has dtype {entry.dtype}"
    return None


def note_on_config(checkpoint: Checkpoint) -> str | None:
    """Return a note for the user if config.json mentions quantisation, else None."""
    configs: list[Mapping[str, object]] = [checkpoint.config, decoder_config(checkpoint.config)]
    keys = [key for key in _CONFIG_KEYS for config in configs if config.get(key)]
    if not keys:
        return None
    evidence = quantisation_evidence(checkpoint)
    if evidence is not None:
        return (
            f"{checkpoint.folder}: some of its weights are quantised ({evidence}). The restored "
            "ones are not, and the others are kept unchanged."
        )
    return (
        f"{checkpoint.folder}: config.json has {keys[0]}, but all weights are plain numbers, so "
        "the key is treated as stale. Remove it if a loader quantises the weights because of it."
    )


def quantised_weights_error(checkpoint: Checkpoint, evidence: str) -> UserError:
    """Return the error for a checkpoint with quantised weights."""
    return UserError(
        f"{checkpoint.folder}: holds quantised weights ({evidence}).",
        hint="Give the same model before quantisation, and quantise the restored model.",
    )
