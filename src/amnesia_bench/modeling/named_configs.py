"""Build a HypeNet config from a file in configs/model or from a config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amnesia_bench.config.load import load_hypenet
from amnesia_bench.config.schema import ModelFile
from amnesia_bench.errors import UserError

from .configuration_hypenet import HypeNetConfig


def load_model_config(size_or_path: str | Path) -> HypeNetConfig:
    """Return the config of the model with this size or in this file; see `load_hypenet`.

    Raises:
        UserError: the size is unknown, or the file does not exist, cannot be read or has invalid
            values.
    """
    return hypenet_config(load_hypenet(size_or_path))


def hypenet_config(model: ModelFile) -> HypeNetConfig:
    """Return the HypeNet config with the values of a model file.

    Raises:
        UserError: the file has an unknown key or an invalid value.
    """
    values: dict[str, Any] = dict(model.values)
    values.pop("model_type", None)
    unknown = sorted(set(values) - set(HypeNetConfig().to_dict()))
    if unknown and not model.name.endswith(".json"):
        # An official config.json also has keys of other mixers, which are ignored. In a file of
        # configs/model, an unknown key is a typo.
        raise UserError(
            f"{model.name}: {unknown[0]} is not a key of a HypeNet config",
            hint="Use the keys of the official config.json.",
        )
    return HypeNetConfig(**values)
