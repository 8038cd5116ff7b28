"""Build the config of a HypeNet from configs/model or from a config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amnesia_bench.config.load import load_hypenet
from amnesia_bench.config.schema import ModelFile
from amnesia_bench.errors import UserError

from .configuration_hypenet import HypeNetConfig


def load_model_config(size_or_path: str | Path) -> HypeNetConfig:
    """Return the config of a named size or of a file; see `load_hypenet`.

    Raises:
        UserError: the size or file does not exist, is not readable, or has invalid values.
    """
    return hypenet_config(load_hypenet(size_or_path))


def hypenet_config(model: ModelFile) -> HypeNetConfig:
    """Return the config of a model file.

    Raises:
        UserError: the file has an unknown key or an invalid value.
    """
    values: dict[str, Any] = dict(model.values)
    values.pop("model_type", None)
    unknown = sorted(set(values) - set(HypeNetConfig().to_dict()))
    if unknown and not model.name.endswith(".json"):
        # An official config.json has keys of other mixers; in our own files they are typos.
        raise UserError(
            f"{model.name}: {unknown[0]} is not a key of a HypeNet config",
            hint="Use the keys of the official config.json.",
        )
    return HypeNetConfig(**values)
