"""Read a HypeNet config by size, from a YAML file or from a config.json.

The sizes are the configs `hypenet_*` of configs/model, whose keys are those of config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amnesia_bench.config.files import is_path
from amnesia_bench.config.load import load_model_file
from amnesia_bench.errors import UserError

from .configuration_hypenet import HypeNetConfig

SIZES = ("2b", "5b", "9b", "laptop", "tiny")


def load_model_config(size_or_path: str | Path) -> HypeNetConfig:
    """Return the config of a size ("2b", "5b", "9b", "laptop", "tiny") or of a .yaml or .json file.

    Raises:
        UserError: no such size or file, an unreadable file, or values that do not fit.
    """
    path, size = Path(size_or_path), str(size_or_path).lower()
    if size not in SIZES and not path.is_file():
        raise UserError(
            f"{size_or_path} is neither a size of HypeNet nor a config file",
            hint=f"Use one of {', '.join(SIZES)}, or the path of a .yaml or config.json.",
        )
    if size not in SIZES and not is_path(str(path)):
        # An official config.json carries keys of other mixers; in our own files it is a typo.
        values = _read_json(path)
        values.pop("model_type", None)
        return HypeNetConfig(**values)
    values = load_model_file(f"hypenet_{size}" if size in SIZES else str(path))
    values.pop("model_type", None)
    if unknown := sorted(values.keys() - HypeNetConfig().to_dict().keys()):
        raise UserError(
            f"{path}: {unknown[0]} is not a key of a HypeNet config",
            hint="Keys are those of the official config.json.",
        )
    return HypeNetConfig(**values)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold keys and values")
    return values
