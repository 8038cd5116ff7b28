"""Parse and apply overrides in Hydra's grammar, for example `train.steps=20`.

Hydra only parses the overrides; keys and values are validated later, by pydantic. This module
therefore accepts unknown keys; the error after the validation suggests the closest known key. Hydra
and OmegaConf are imported inside functions, because each import takes 0.1 s and many commands need
neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, cast

from amnesia_bench.errors import UserError

_KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@]*", re.ASCII)

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def expand_sweep(overrides: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the overrides of each job of a sweep, one job per combination of `key=a,b` choices.

    Raises:
        UserError: Hydra cannot parse an override.
    """
    return tuple(product(*map(_choices, overrides)))


def with_overrides(values: Mapping[str, object], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of the values with overrides applied: `key=value` sets, `~key` removes a key.

    Raises:
        UserError: an override cannot be parsed, or does not fit the values.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.create(dict(values))
        for typed in overrides:
            _apply(config, typed)
        return cast(
            "dict[str, Any]", OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        )
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        # For some values OmegaConf raises built-in exceptions instead of its own.
        raise UserError(f"config: {str(error).partition(chr(10))[0]}") from error


def _apply(config: Any, typed: str) -> None:
    from omegaconf import OmegaConf

    override = _parsed(typed)
    key = override.key_or_group
    if key.partition(".")[0].partition("/")[0] == "hydra":
        raise UserError(f"{typed}: Hydra's own settings have no effect here")
    if override.package is not None or override.is_sweep_override():
        raise UserError(f"{typed!r}: expected one value of one key")
    if not override.is_delete():
        OmegaConf.update(config, key, override.value(), merge=True, force_add=True)
        return
    block, _, last = key.rpartition(".")
    node = OmegaConf.select(config, block) if block else config
    if not OmegaConf.is_dict(node) or last not in node or "=" in typed:
        raise UserError(f"{typed}: no key {key} to remove", hint="~KEY removes a key.")
    del node[last]


def _choices(typed: str) -> list[str]:
    from hydra.errors import HydraException

    override = _parsed(typed)
    if not override.is_discrete_sweep():
        return [typed]
    try:
        return [f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()]
    except HydraException as error:  # for example for glob(*), which needs Hydra's folders
        raise malformed_override(typed) from error


def _parsed(typed: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(typed)
    except (HydraException, ValueError, RecursionError) as error:
        raise malformed_override(typed) from error


def malformed_override(typed: str) -> UserError:
    """Return the error for a word on the command line that is not a valid override."""
    key, separator, value = typed.partition("=")
    if separator and _KEY.fullmatch(key) and "'" not in value:
        # Hydra's grammar gives most characters except ASCII letters and digits a meaning.
        return UserError(
            f"{typed!r}: Hydra cannot parse the value",
            hint=f"If it is a text, quote it twice: \"{key}='{value}'\"",
        )
    return UserError(f"{typed!r}: expected key=value", hint="For example restore=qk_pro.")
