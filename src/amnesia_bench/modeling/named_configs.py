"""Build a HypeNet config from a file in configs/model or from a config.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from amnesia_bench.config.load import load_hypenet
from amnesia_bench.config.messages import nearest
from amnesia_bench.config.schema import ModelFile
from amnesia_bench.errors import UserError

from .configuration_hypenet import HypeNetConfig

# Keys of earlier releases of transformers, which it converts.
_OLDER_KEYS = ("rope_theta", "rope_scaling", "rope_local_base_freq", "torch_dtype")


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
    check_config_keys(model, values, HypeNetConfig)
    return HypeNetConfig(**values)


def check_config_keys(
    model: ModelFile, keys: Iterable[str], config_class: type[PreTrainedConfig]
) -> None:
    """Check that a user's model file only sets keys of its config class, which accepts any.

    An official config.json also has keys of other mixers and of other versions, which are ignored.

    Raises:
        UserError: a key is unknown; the hint has the closest known key.
    """
    if model.name.endswith(".json"):
        return
    known = {*config_class().to_dict(), *config_class.attribute_map, *_OLDER_KEYS}
    unknown = sorted(set(keys) - known)
    if unknown:
        raise UserError(
            f"{model.name}: {unknown[0]} is not a key of a {config_class.model_type} config",
            hint=nearest(unknown[0], sorted(known - set(_OLDER_KEYS))),
        )
