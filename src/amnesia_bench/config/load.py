"""Hydra groups and overrides in, one frozen object out.

Hydra composes; pydantic alone judges keys and values. Hydra by itself accepts a wrong key inside
a YAML file and any `+key=value`, so every value override reaches it as `++key=value` and is
judged here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError, create_model

import amnesia_bench
from amnesia_bench.config.data_schema import DataConfig, with_style
from amnesia_bench.config.messages import describe, nearest
from amnesia_bench.config.schema import Frozen, ModelFile, Variant
from amnesia_bench.config.train_schema import Recipe, TrainConfig, TrainingRun
from amnesia_bench.errors import MissingEnvironmentError, UserError

Schema = TypeVar("Schema", bound=BaseModel)

HYPENET_SIZES = ("2b", "5b", "9b", "laptop", "tiny")


def config_dir() -> Path:
    """Return the folder of the config groups: inside the package, or at the repository's root.

    Raises:
        MissingEnvironmentError: the installation has none.
    """
    package = Path(amnesia_bench.__file__).resolve().parent
    # An editable install does not see the mapping that puts them into a wheel.
    for candidate in (package / "configs", package.parents[1] / "configs"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise MissingEnvironmentError(
        f"no configs/config.yaml in {package} or at its repository's root",
        hint="Install amnesia-bench again, from a wheel or a clone.",
    )


def options(group: str) -> tuple[str, ...]:
    """Return the names that a config group offers; empty when there is no such group."""
    return tuple(sorted(path.stem for path in (config_dir() / group).glob("*.yaml")))


def load_model_file(name: str) -> dict[str, Any]:
    """Return what a file of configs/model says, in the keys of a config.json.

    Raises:
        UserError: no such file.
    """
    known = options("model")
    if name not in known:
        raise UserError(f"model {name}: no such file of configs/model", hint=nearest(name, known))
    path = config_dir() / "model" / f"{name}.yaml"
    return cast("dict[str, Any]", yaml.safe_load(path.read_text(encoding="utf-8")))


def load_root(overrides: Sequence[str], schema: type[Schema]) -> Schema:
    """Compose configs/config.yaml and check it; each field of `schema` is a group.

    Args:
        overrides: as typed on the command line: `restore=qk_blend`, `restore.rule.alpha=0.3`.
        schema: what the whole must be.

    Raises:
        UserError: a key, a value or an option is wrong; the message names its path.
    """
    return _load("config", overrides, schema, list(schema.model_fields))


def expand_sweep(overrides: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the overrides of every job of a sweep: each combination of `key=a,b` choices.

    Raises:
        UserError: an override that Hydra cannot read.
    """
    return tuple(product(*map(_choices, overrides)))


def _choices(typed: str) -> list[str]:
    try:
        override = OverridesParser.create().parse_override(typed)
        if not override.is_discrete_sweep():
            return [typed]
        return [f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()]
    except (HydraException, ValueError, RecursionError) as error:
        raise _no_override(typed) from error


def load_option(group: str, name: str, overrides: Sequence[str], schema: type[Schema]) -> Schema:
    """Load one option of a config group by itself.

    Args:
        group: a folder of configs.
        name: a file in it.
        overrides: with full paths: `restore.select.layers=[3,7]`.
        schema: what the option must be.

    Raises:
        UserError: no such option, or an override is wrong; the message names its path.
    """
    known = options(group)
    if name not in known:
        raise UserError(f"{group}={name}: no such option", hint=nearest(name, known))
    for override in overrides:
        if "." not in override.lstrip("+~").partition("=")[0]:
            raise UserError(
                f"{override}: {group} is {name}; only its values can be changed",
                hint=f"A value's path begins with {group}. and ends with =VALUE.",
            )
    # Hydra packs what lies in a group's folder under the group's name.
    whole = create_model("Option", __base__=Frozen, **{group: (schema, ...)})  # type: ignore[call-overload]
    loaded = _load(f"{group}/{name}", overrides, whole, [group])
    return cast("Schema", getattr(loaded, group))


def validate_values(schema: type[Schema], values: Mapping[str, object]) -> Schema:
    """Return values that were typed one by one as what they must be.

    Raises:
        UserError: one of them is wrong.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise describe(error, schema, values, ()) from error


def load_data(
    name: str, overrides: Sequence[str] = (), chat_style: str | None = None
) -> DataConfig:
    """Load a source of data by its name; see `load_option`.

    `chat_style` is how conversations are written, instead of the config's style.
    """
    config = load_option("data", name, overrides, DataConfig)
    if chat_style is None:
        return config
    return validate_values(DataConfig, with_style(config, chat_style))


def load_model(name: str) -> ModelFile:
    """Load a model's shape by the name of its file of configs/model.

    Raises:
        UserError: no such file.
    """
    return ModelFile(name=name, values=load_model_file(name))


def load_hypenet(size_or_path: str | Path) -> ModelFile:
    """Load a HypeNet's shape by its size (2b, 5b, 9b, laptop, tiny), or from a .yaml or .json file.

    Raises:
        UserError: no such size or file, or an unreadable file.
    """
    size = str(size_or_path).lower()
    if size in HYPENET_SIZES:
        return load_model(f"hypenet_{size}")
    path = Path(size_or_path)
    if not path.is_file():
        raise UserError(
            f"{size_or_path} is neither a size of HypeNet nor a config file",
            hint=f"Use one of {', '.join(HYPENET_SIZES)}, or the path of a .yaml or config.json.",
        )
    return validate_values(ModelFile, {"name": str(path), "values": _read_mapping(path)})


def load_variant(name: str, overrides: Sequence[str] = ()) -> Variant:
    """Load a restore variant by its name; see `load_option`."""
    return load_option("restore", name, overrides, Variant)


def load_training(name: str, overrides: Sequence[str] = ()) -> TrainingRun:
    """Load a stage of configs/train by name.

    Args:
        name: a file of configs/train.
        overrides: `recipe=halo_parity`, `recipe.kd_rows=all`, `train.steps=20`, ...

    Raises:
        UserError: no such stage or recipe, or an override is wrong; the message names its path.
    """
    chosen = [o.partition("=")[2] for o in overrides if o.startswith("recipe=")]
    values = [o for o in overrides if not o.startswith("recipe=")]
    groups = {"train": [], "recipe": []}  # type: dict[str, list[str]]
    for override in values:
        group = override.lstrip("+~").partition("=")[0].partition(".")[0]
        if group not in groups:
            raise UserError(f"{override}: unknown key", hint=nearest(group, list(groups)))
        if override.lstrip("+").startswith("train.mixture="):
            # Hydra would add to the sources of the stage; these are meant instead of them.
            groups[group].append("~train.mixture")
        groups[group].append(override)
    recipe = chosen[-1] if chosen else "fixed"
    if recipe not in options("recipe"):
        raise UserError(f"recipe={recipe}: no such option", hint=nearest(recipe, options("recipe")))
    return TrainingRun(
        train=load_option("train", name, groups["train"], TrainConfig),
        recipe=load_option("recipe", recipe, groups["recipe"], Recipe),
    )


def _load(
    root: str, overrides: Sequence[str], schema: type[Schema], groups: Sequence[str]
) -> Schema:
    data = _compose(root, [_for_hydra(override, groups) for override in overrides])
    _refuse_targets(data, "")
    try:
        # JSON, since strict pydantic takes its arrays for tuples and a list of Python's not.
        return schema.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise describe(error, schema, data, groups) from error


def _for_hydra(override: str, groups: Sequence[str]) -> str:
    key, equals, _ = override.lstrip("+~").partition("=")
    if not key or not (equals or override.startswith("~")):
        raise _no_override(override)
    if key.partition(".")[0].partition("/")[0] == "hydra":
        raise UserError(f"{override}: Hydra's own settings have no effect here")
    if key.partition("@")[0] in groups or override.startswith("~"):
        return override
    return "++" + override.lstrip("+")


def _no_override(typed: str) -> UserError:
    return UserError(f"{typed!r}: expected key=value", hint="For example restore=qk_pro.")


def _compose(root: str, overrides: list[str]) -> object:
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3", job_name="amnesia"):
            config = compose(root, overrides)
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingConfigException as error:
        if error.missing_cfg_file is None or not error.options:
            raise UserError(_first_line(error)) from error
        group, _, option = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        hint = nearest(option, list(error.options))
        raise UserError(f"{group}={option}: no such option", hint=hint) from error
    except yaml.YAMLError as error:
        raise UserError(f"a file in {config_dir()} is not YAML: {error}") from error
    except (HydraException, OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        # Hydra answers some overrides, such as `restore=null`, with errors of Python's own.
        raise UserError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    # The lines that follow advise `+key`, which is never right here.
    return f"config: {str(error).partition(chr(10))[0]}"


def _refuse_targets(data: object, path: str) -> None:
    if isinstance(data, dict):
        for key, value in data.items():
            if key == "_target_":
                raise UserError(f"{path}_target_: not allowed, configs are data and never code")
            _refuse_targets(value, f"{path}{key}.")
    elif isinstance(data, list):
        for index, value in enumerate(data):
            _refuse_targets(value, f"{path}{index}.")


def _read_mapping(path: Path) -> dict[str, Any]:
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
