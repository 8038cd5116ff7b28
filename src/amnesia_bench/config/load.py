"""Load configs, with overrides, as frozen pydantic objects.

`files` reads the YAML files and `overrides` applies the overrides; keys and values are validated
only by pydantic. A config is selected by its name or by the path of your own file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, create_model

from amnesia_bench.config.data_schema import DataConfig, with_style
from amnesia_bench.config.eval_schema import NiahConfig
from amnesia_bench.config.files import (
    Config,
    config_dir,
    is_path,
    options,
    read_config,
    read_yaml,
)
from amnesia_bench.config.messages import describe
from amnesia_bench.config.overrides import malformed_override, with_overrides
from amnesia_bench.config.schema import Frozen, ModelFile, Variant
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import UserError

Schema = TypeVar("Schema", bound=BaseModel)

HYPENET_SIZES = ("0_6b", "2b", "5b", "9b", "laptop", "pico", "tiny")


def load_root(
    overrides: Sequence[str], schema: type[Schema], fixed: Mapping[str, str] | None = None
) -> Schema:
    """Load one config for each field of `schema`, from the group with the field's name.

    Args:
        overrides: overrides as on the command line, for example `restore=qk_blend`,
            `restore=mine.yaml`, `restore.rule.alpha=0.3`. A group that they do not select uses its
            default in configs/config.yaml.
        schema: pydantic model of the result.
        fixed: the config of each group whose config `overrides` must not select.

    Raises:
        UserError: a key, a value or the name of a config is wrong; the message names its path.
    """
    groups, fixed = list(schema.model_fields), fixed or {}
    typed, changes = _split(overrides, groups, fixed)
    chosen = {**read_yaml(config_dir() / "config.yaml"), **typed, **fixed}
    if missing := [group for group in groups if group not in chosen]:
        hint = f"{missing[0]}={'|'.join(options(missing[0]))}"
        raise UserError(f"no {missing[0]} selected", hint=hint)
    configs = {group: read_config(group, chosen[group]) for group in groups}
    named = {
        group: _named(config, schema.model_fields[group].annotation)
        for group, config in configs.items()
    }
    data = with_overrides(named, changes)
    _refuse_targets(data, "")
    try:
        # Validated as JSON, because strict pydantic converts a JSON array, but not a Python list,
        # to a tuple.
        return schema.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        problem = describe(error, schema, data, _Places(configs, changes).where)
        raise UserError(problem.what, hint=_with_members(problem.hint, configs)) from error


def load_option(
    group: str, name: str | Path, overrides: Sequence[str], schema: type[Schema]
) -> Schema:
    """Load a single config of a group.

    Args:
        group: name of a config group, which is a folder in configs/.
        name: name of a config in it, or the path of your own file.
        overrides: overrides whose keys begin with the group: `restore.select.layers=[3,7]`.
        schema: pydantic model of the config.

    Raises:
        UserError: the config does not exist, or an override is wrong; the message names its path.
    """
    name = str(name)
    _refuse_single_text(overrides)
    for override in overrides:
        if "." not in override.lstrip("+~").partition("=")[0]:
            raise _chosen_already(override, group, name)
    whole = create_model("Option", __base__=Frozen, **{group: (schema, ...)})  # type: ignore[call-overload]
    loaded: Schema = getattr(load_root(overrides, whole, {group: name}), group)
    return loaded


def validate_values(schema: type[Schema], values: Mapping[str, object]) -> Schema:
    """Validate values that are not from a config file, and return them as an object of `schema`.

    Raises:
        UserError: a value is wrong.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise describe(error, schema, values) from error


def load_data(
    name: str | Path, overrides: Sequence[str] = (), chat_style: str | None = None
) -> DataConfig:
    """Load a data config by its name or path; see `load_option`.

    `chat_style` overrides the config's chat style; None keeps it.
    """
    config = load_option("data", name, overrides, DataConfig)
    if chat_style is None:
        return config
    return validate_values(DataConfig, with_style(config, chat_style))


def load_niah(name: str | Path = "niah") -> NiahConfig:
    """Load a NIAH config by its name or path, by default configs/eval/niah.yaml."""
    return load_option("eval", name, (), NiahConfig)


def load_variant(name: str | Path, overrides: Sequence[str] = ()) -> Variant:
    """Load a restore variant by its name or path; see `load_option`."""
    return load_option("restore", name, overrides, Variant)


def load_training(name: str | Path, overrides: Sequence[str] = ()) -> TrainingRun:
    """Load the configuration of a training run: a config of configs/train, and its recipe.

    Args:
        name: name of a config in configs/train, or the path of your own file.
        overrides: for example `recipe=halo_parity`, `recipe.kd_rows=all`, `train.steps=20`.

    Raises:
        UserError: a config does not exist, or an override is wrong; the message names its path.
    """
    _refuse_single_text(overrides)
    changes: list[str] = []
    for override in overrides:
        if override.lstrip("+").startswith("train.mixture="):
            # Overrides are merged with the config. Setting the mixture to null first makes the new
            # sources replace those of the config instead.
            changes.append("train.mixture=null")
        changes.append(override)
    return load_root(changes, TrainingRun, {"train": str(name)})


def load_model(name: str | Path) -> ModelFile:
    """Load a model's shape by the name or path of its config.

    Raises:
        UserError: the config does not exist or cannot be read.
    """
    return ModelFile(name=str(name), values=load_model_file(name))


def load_model_file(name: str | Path) -> dict[str, Any]:
    """Return the values of a config in configs/model, whose keys are those of a config.json.

    `name` is the name or path of the config.

    Raises:
        UserError: the config does not exist or cannot be read.
    """
    config = read_config("model", str(name))
    if config.members:
        raise UserError(
            f"model {name}: is only the shared part of {', '.join(config.members)}",
            hint="Choose one of them.",
        )
    return with_overrides(config.values, ())


def load_hypenet(size_or_path: str | Path) -> ModelFile:
    """Load a HypeNet's shape by its size, one of HYPENET_SIZES, or from a .yaml or .json file.

    Raises:
        UserError: the size is unknown, or the file does not exist or cannot be read.
    """
    size = str(size_or_path).lower()
    if size in HYPENET_SIZES:
        return load_model(f"hypenet_{size}")
    path = Path(size_or_path)
    if not path.is_file():
        raise UserError(
            f"{size_or_path} is neither a HypeNet size nor a config file",
            hint=f"Use one of {', '.join(HYPENET_SIZES)}, or the path of a .yaml or config.json.",
        )
    if is_path(str(path)):
        return load_model(str(path))
    return validate_values(ModelFile, {"name": str(path), "values": _read_json(path)})


def _refuse_single_text(overrides: Sequence[str]) -> None:
    if isinstance(overrides, str):
        raise TypeError(f"overrides: expected a sequence of texts, for example [{overrides!r}]")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not contain keys and values")
    return values


def _split(
    overrides: Sequence[str], groups: Sequence[str], fixed: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Split overrides into those that select a config (group to name) and those that set values."""
    chosen, changes = {}, []
    for override in overrides:
        key, equals, value = override.lstrip("+~").partition("=")
        if not key or not (equals or override.startswith("~")):
            raise malformed_override(override)
        if key not in groups or override.startswith("~"):
            changes.append(override)
        elif key in fixed:
            raise _chosen_already(override, key, fixed[key])
        elif override != f"{key}={value}":
            raise malformed_override(override)
        else:
            chosen[key] = value
    return chosen, changes


def _chosen_already(override: str, group: str, name: str) -> UserError:
    return UserError(
        f"{override}: {group} is {name}; only its values can be changed",
        hint=f"A value's path begins with {group}. and ends with =VALUE.",
    )


def _named(config: Config, schema: Any) -> dict[str, Any]:
    """Return a config's values, with the config's name if the schema has the field `name`."""
    if "name" not in getattr(schema, "model_fields", ()):  # a union of schemas has no fields
        return config.values
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", config.name):
        raise UserError(
            f"{config.places[-1].path}: the name of the file is the name of the config, but "
            f"{config.name} is not a valid name",
            hint="Use lower-case letters, digits and underscores: my_run.yaml.",
        )
    return {"name": config.name, **config.values}


class _Places:
    """Finds the file and line in which an invalid value is set."""

    def __init__(self, configs: Mapping[str, Config], changes: Sequence[str]) -> None:
        self._configs = configs
        self._typed = {change.lstrip("+~").partition("=")[0] for change in changes}

    def where(self, keys: Sequence[str | int]) -> str | None:
        """Return `FILE:LINE` of a value; None if an override set the value or a part of it."""
        group, *inside = keys
        path = ".".join(map(str, keys))
        typed = any(f"{path}.".startswith(f"{key}.") for key in self._typed)
        typed = typed or any(key.startswith(f"{path}.") for key in self._typed)
        if typed or group not in self._configs:
            return None
        return self._configs[str(group)].where(inside)


def _with_members(hint: str | None, configs: Mapping[str, Config]) -> str | None:
    """Extend a hint with the names of a file's configs if only their shared part was selected."""
    shared = (config for config in configs.values() if config.members)
    hints = [
        f"{config.name} is only the shared part of {', '.join(config.members)}: choose one of them."
        for config in shared
    ]
    return "\n".join([*hints, *([hint] if hint else [])]) or None


def _refuse_targets(data: object, path: str) -> None:
    if isinstance(data, dict):
        for key, value in data.items():
            if key == "_target_":
                raise UserError(f"{path}_target_: not allowed, configs contain data and no code")
            _refuse_targets(value, f"{path}{key}.")
    elif isinstance(data, list):
        for index, value in enumerate(data):
            _refuse_targets(value, f"{path}{index}.")
