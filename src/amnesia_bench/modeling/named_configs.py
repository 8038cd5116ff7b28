"""Read a HypeNet config by size, from a YAML file or from a config.json.

The sizes are the files `configs/model/hypenet_*.yaml`, whose keys are those of config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amnesia_bench.config.load import config_dir
from amnesia_bench.errors import UserError

from .configuration_hypenet import HypeNetConfig

SIZES = ("2b", "5b", "9b", "laptop", "tiny")


def load_model_config(size_or_path: str | Path) -> HypeNetConfig:
    """Return the config of a size ("2b", "5b", "9b", "laptop", "tiny") or of a .yaml or .json file.

    Raises:
        UserError: no such size or file, an unreadable file, or values that do not fit.
    """
    name = str(size_or_path).lower()
    path = config_dir() / "model" / f"hypenet_{name}.yaml" if name in SIZES else Path(size_or_path)
    if not path.is_file():
        raise UserError(
            f"{size_or_path} is neither a size of HypeNet nor a config file",
            hint=f"Use one of {', '.join(SIZES)}, or the path of a .yaml or config.json.",
        )
    values = read_mapping(path)
    values.pop("model_type", None)
    unknown = sorted(set(values) - _known_keys())
    if unknown and path.suffix != ".json":
        # An official config.json carries keys of other mixers; in our own files it is a typo.
        raise UserError(
            f"{path}: {unknown[0]} is not a key of a HypeNet config",
            hint="Keys are those of the official config.json.",
        )
    return HypeNetConfig(**values)


def _known_keys() -> set[str]:
    return set(HypeNetConfig().to_dict())


def read_mapping(path: Path) -> dict[str, Any]:
    """Read the keys and values of a .yaml or .json file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
        else:
            values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise UserError(f"{path} is not YAML: {error}") from error
        raise
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold keys and values")
    return {str(key): value for key, value in values.items()}
