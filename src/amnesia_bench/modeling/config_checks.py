"""Checks of config values that the models of this package share."""

import math
from collections.abc import Sequence
from typing import Any

from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .input_errors import InvalidModelInputError


def check_positive(config: Any, keys: Sequence[str]) -> None:
    """Refuse a config in which the value of one of these keys is not positive."""
    for key in keys:
        if not getattr(config, key) > 0:
            raise InvalidModelInputError(f"{key} is {getattr(config, key)}; it must be positive")


def check_divides(key: str, value: int, by_key: str, by: int) -> None:
    """Refuse a value that is not a multiple of the value of another key."""
    if by < 1 or value % by:
        raise InvalidModelInputError(
            f"{key} ({value}) is not a multiple of {by_key} ({by})",
            hint=f"Choose {by_key} so that it divides {key}.",
        )


def check_activation(hidden_act: str) -> None:
    """Refuse an activation function of the MLP that transformers does not have."""
    if hidden_act not in ACT2FN:
        raise InvalidModelInputError(
            f"hidden_act is {hidden_act!r}, which transformers does not have",
            hint="Published checkpoints use silu.",
        )


def check_rope_parameters(rope_parameters: dict[str, Any] | None) -> None:
    """Refuse RoPE parameters without a positive base period or of an unknown type."""
    rope = rope_parameters or {}
    theta, kind = rope.get("rope_theta"), rope.get("rope_type")
    if not isinstance(theta, int | float) or not (math.isfinite(theta) and theta > 0):
        raise InvalidModelInputError(
            f"rope_theta is {theta!r}; it must be a positive number",
            hint="Published checkpoints use 1000000.",
        )
    if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
        raise InvalidModelInputError(
            f"rope_scaling has rope_type {kind!r}",
            hint=f"Use one of {', '.join(['default', *ROPE_INIT_FUNCTIONS])}.",
        )


def rope_keys_of_files(rope_parameters: dict[str, Any] | None) -> dict[str, Any]:
    """Return the keys `rope_theta` and `rope_scaling`, which authors' code reads from files."""
    rope = dict(rope_parameters or {})
    theta = rope.pop("rope_theta", None)
    scaling = None if rope.get("rope_type", "default") == "default" else rope
    return {"rope_theta": theta, "rope_scaling": scaling}
