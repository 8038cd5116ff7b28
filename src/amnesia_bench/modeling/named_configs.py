"""A HypeNet's config from its shape, as configs/model or a config.json says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amnesia_bench.config.load import load_hypenet
from amnesia_bench.config.schema import ModelFile
from amnesia_bench.errors import UserError

from .configuration_hypenet import HypeNetConfig


def load_model_config(size_or_path: str | Path) -> HypeNetConfig:
    """Return the config of a size or of a file; see `load_hypenet`.

    Raises:
        UserError: no such size or file, an unreadable file, or values that do not fit.
    """
    return hypenet_config(load_hypenet(size_or_path))


def hypenet_config(model: ModelFile) -> HypeNetConfig:
    """Return the config of a shape.

    Raises:
        UserError: values that do not fit.
    """
    values: dict[str, Any] = dict(model.values)
    values.pop("model_type", None)
    unknown = sorted(set(values) - set(HypeNetConfig().to_dict()))
    if unknown and not model.name.endswith(".json"):
        # An official config.json carries keys of other mixers; in our own files it is a typo.
        raise UserError(
            f"{model.name}: {unknown[0]} is not a key of a HypeNet config",
            hint="Keys are those of the official config.json.",
        )
    return HypeNetConfig(**values)
