"""Read the files of configs/ and resolve `extends`.

A file contains one config. With `extends: NAME` at its top it inherits the values of another config
of its group; with `extends: [A, B]` it inherits those of several, where later configs override
earlier ones. A block inside a file may inherit all values of a config of any group, for example
`extends: eval/niah`.

Configs that differ in only a few values can share a file: each entry of `configs` is a config that
extends the rest of the file. A file whose name begins with _ cannot be selected, only extended.

    extends: sft            # or the path of your own file: extends: ../mine.yaml
    steps: 100
    configs:
      short: {steps: 20}    # like a file short.yaml with `extends: THIS_FILE` and `steps: 20`
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

import amnesia_bench
from amnesia_bench.config.messages import nearest
from amnesia_bench.errors import MissingEnvironmentError, UserError

_SUFFIXES = (".yaml", ".yml")
_EXTENDS, _CONFIGS = "extends", "configs"
# Keys that only earlier versions accepted, with hints for replacing them.
_MOVED = {
    "defaults": "Write `extends: NAME`, or a list of names; the file itself overrides them.",
    "name": "A config has the name of its file: remove the key.",
}


@dataclass(frozen=True)
class Place:
    """The location of a config: a file and, if the file has several configs, an entry's name."""

    path: Path
    entry: str | None = None

    @property
    def name(self) -> str:
        """Return the name of the config."""
        return self.entry or self.path.stem

    @property
    def identity(self) -> tuple[Path, str | None]:
        """Return a key that is equal for places whose paths are two spellings of the same path."""
        return self.path.resolve(), self.entry

    def line_of(self, keys: Sequence[str | int]) -> int | None:
        """Return the number of the line with a key of the config; None if the file lacks the key.

        `keys` is the path of the key, from the top of the config.
        """
        inside = () if self.entry is None else (_CONFIGS, self.entry)
        node: Any = yaml.compose(self.path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        line = None
        for key in (*inside, *keys):
            if isinstance(node, yaml.MappingNode):
                pairs = [(k, v) for k, v in node.value if k.value == str(key)]
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
                pairs = [(item, item) for item in node.value[key : key + 1]]
            else:
                pairs = []
            if not pairs:
                return None
            line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
        return line

    def at(self, keys: Sequence[str | int]) -> str:
        """Return `FILE:LINE` for a key of the config, or only `FILE` if the file lacks the key."""
        line = self.line_of(keys)
        return str(self.path) if line is None else f"{self.path}:{line}"


@dataclass(frozen=True)
class Config:
    """A config with `extends` resolved.

    `places` has the place of every config that contributed values: first its bases, then itself.
    """

    values: dict[str, Any]
    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """Return the config's name, which is the name of its file or entry."""
        return self.places[-1].name

    @property
    def members(self) -> tuple[str, ...]:
        """Return the names of the file's entries if this config is their shared part, else ()."""
        last = self.places[-1]
        return () if last.entry is not None else tuple(read_yaml(last.path).get(_CONFIGS, ()))

    def where(self, keys: Sequence[str | int]) -> str:
        """Return `FILE:LINE` of the place that sets a value, or the file in which it is missing."""
        last = self.places[-1]
        if not keys:
            return str(last.path)
        setters = (place for place in reversed(self.places) if place.line_of(keys) is not None)
        return next(setters, last).at(keys)


def config_dir() -> Path:
    """Return the folder `configs`, which is in the package or at the repository's root.

    Raises:
        MissingEnvironmentError: the installation has no configs.
    """
    package = Path(amnesia_bench.__file__).resolve().parent
    # A wheel contains the configs in the package; an editable install uses those of the repository.
    for candidate in (package / "configs", package.parents[1] / "configs"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise MissingEnvironmentError(
        f"no configs/config.yaml in {package} or at its repository's root",
        hint="Install amnesia-bench again, from a wheel or a clone.",
    )


def options(group: str) -> tuple[str, ...]:
    """Return the names of the configs that can be selected in a group; () if there is no group."""
    public = (place for place in _places(group) if not place.name.startswith("_"))
    return tuple(sorted(place.name for place in public if _is_whole(place)))


def is_path(reference: str) -> bool:
    """Return whether a reference to a config is a path and not a name."""
    return reference.endswith(_SUFFIXES)


def config_name(reference: str) -> str:
    """Return the name of a config that is referenced by name or by path."""
    return Path(reference).stem if is_path(reference) else reference


def read_config(group: str, reference: str) -> Config:
    """Return a config of a group, with `extends` resolved.

    Args:
        group: name of a config group, which is a folder in configs/.
        reference: the name of a config in it, or the path of your own file (.yaml, .yml); that file
            may extend packaged configs.

    Raises:
        UserError: the config does not exist, or a file cannot be read; the message names it.
    """
    return compose(_find(group, reference, Path()), group)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file, which must be a mapping.

    Raises:
        UserError: the file cannot be read, or is not a mapping.
    """
    try:
        stamp = path.stat()
        content = _parsed(path, stamp.st_mtime_ns, stamp.st_size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not contain keys and values")
    return content


@cache
def _parsed(path: Path, modified: int, size: int) -> object:
    # Imported here because the import takes 0.1 s, and many commands read no config.
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}:{mark.line + 1}"
        raise UserError(f"{where} is not YAML: {getattr(error, 'problem', error)}") from error
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `base` updated with the values of `over`; blocks are merged key by key."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both_blocks = isinstance(old, dict) and isinstance(value, dict)
        result[key] = merged(old, value) if both_blocks else value  # type: ignore[arg-type]
    return result


def bases_of(place: Place, group: str) -> list[tuple[str, Place]]:
    """Return the group and place of each config that the config at `place` extends.

    The bases of an entry include the rest of its file.
    """
    bases = _extended(_content(place), group, place)
    file = Place(place.path)
    if place.entry is not None and file.path not in {base.path for _, base in bases}:
        bases.append((group, file))
    return bases


def compose(place: Place, group: str, readers: tuple[Place, ...] = ()) -> Config:
    """Return the config at a place, with `extends` resolved.

    `readers` are the places of the configs that extend it, directly or indirectly.

    Raises:
        UserError: the config extends itself, or a config that does not exist, or a file cannot be
            read.
    """
    if place.identity in {reader.identity for reader in readers}:
        chain = " extends ".join(link.name for link in (*readers, place))
        raise UserError(f"{readers[-1].at([_EXTENDS])}: {chain}")
    content = _content(place)
    for key in _MOVED.keys() & content.keys():
        raise UserError(f"{place.at([key])}: {key}: unknown key", hint=_MOVED[key])
    bases = [
        compose(base, base_group, (*readers, place)) for base_group, base in bases_of(place, group)
    ]
    values: dict[str, Any] = {}
    for config in bases:
        values = merged(values, config.values)
    values = merged(values, _own(content, group, place, readers))
    places = dict.fromkeys(base_place for config in bases for base_place in config.places)
    return Config(copy.deepcopy(values), (*places, place))


def _content(place: Place) -> dict[str, Any]:
    content = read_yaml(place.path)
    return content if place.entry is None else content[_CONFIGS][place.entry] or {}


def _own(
    content: Mapping[str, Any], group: str, place: Place, readers: tuple[Place, ...]
) -> dict[str, Any]:
    """Return the values that a config sets itself, with `extends` of its blocks resolved."""
    own: dict[str, Any] = {}
    for key, value in content.items():
        if key in (_EXTENDS, _CONFIGS):
            continue
        if isinstance(value, dict):
            block: dict[str, Any] = {}
            for base_group, base in _extended(value, group, place):
                block = merged(block, compose(base, base_group, (*readers, place)).values)
            value = merged(block, _own(value, group, place, readers))
        own[key] = value
    return own


def _extended(content: Mapping[str, Any], group: str, place: Place) -> list[tuple[str, Place]]:
    """Return the group and place of each config that the key `extends` of a file or block names."""
    value = content.get(_EXTENDS, [])
    references = value if isinstance(value, list) else [value]
    bases = []
    for reference in references:
        if not isinstance(reference, str):
            raise UserError(
                f"{place.at([_EXTENDS])}: extends={reference}: expected the name of a config, the "
                "path of a file (.yaml), or a list of them"
            )
        other, _, name = ("", "", reference) if is_path(reference) else reference.rpartition("/")
        try:
            bases.append((other or group, _find(other or group, name, place.path.parent)))
        except UserError as error:
            where = place.at([_EXTENDS])
            raise UserError(f"{where}: extends: {error.what}", hint=error.hint) from error
    return bases


def _find(group: str, reference: str, folder: Path) -> Place:
    if is_path(reference):
        path = folder / Path(reference)
        try:
            exists = path.is_file()
        except OSError as error:  # for example, the name is too long
            raise UserError(f"{reference:.200}: {error.strerror}") from error
        if not exists:
            raise UserError(f"{reference}: no such file")
        if _CONFIGS in read_yaml(path):
            raise UserError(
                f"{Place(path).at([_CONFIGS])}: a file given by path can contain only one config",
                hint="Write each config to its own file; they may extend a common one.",
            )
        return Place(path)
    places = {place.name: place for place in _places(group)}
    if reference not in places:
        hint = nearest(reference, options(group))
        if Path(f"{reference}.yaml").is_file():
            hint = f"To use your own file, add its suffix: {reference}.yaml"
        raise UserError(f"{group}={reference}: no such option", hint=hint)
    return places[reference]


def _places(group: str) -> list[Place]:
    """Return the places of all configs of a group: first files, then entries.

    An entry comes later so that it takes precedence over a file with the same name.
    """
    paths = sorted((config_dir() / group).glob("*.yaml"))
    entries = (
        Place(path, entry) for path in paths for entry in read_yaml(path).get(_CONFIGS) or ()
    )
    return [*map(Place, paths), *entries]


def _is_whole(place: Place) -> bool:
    return place.entry is not None or _CONFIGS not in read_yaml(place.path)
