"""The files of configs/: which configs they hold, and what each says in the end.

A file holds one config. `extends: NAME` at its top begins with the values of another config of its
group, `extends: [A, B]` with those of several, the last of which wins. A block inside a file may
extend a whole config of any group: `extends: eval/niah`.

Configs that differ in few values share a file: each entry of `configs` is a config that extends
the rest of the file. A file whose name begins with _ is only there to be extended.

    extends: sft            # or a file of your own, by its path: extends: ../mine.yaml
    steps: 100
    configs:
      short: {steps: 20}    # as a file short.yaml with `extends: THIS_FILE` and `steps: 20`
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
# Keys that older files have, and what to write instead.
_MOVED = {
    "defaults": "Write `extends: NAME`; a list takes several, and the file itself comes last.",
    "name": "A config has the name of its file: leave the key out.",
}


@dataclass(frozen=True)
class Place:
    """Where a config stands: a file, and in a file of several its entry."""

    path: Path
    entry: str | None = None

    @property
    def name(self) -> str:
        """Return the name of the config."""
        return self.entry or self.path.stem

    @property
    def identity(self) -> tuple[Path, str | None]:
        """Return what it shares with no other place, whatever way its path takes."""
        return self.path.resolve(), self.entry

    def line_of(self, keys: Sequence[str | int]) -> int | None:
        """Return the line of a key of the config; None where this file does not have it."""
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
        """Return the file, and the line of a key where it has that."""
        line = self.line_of(keys)
        return str(self.path) if line is None else f"{self.path}:{line}"


@dataclass(frozen=True)
class Config:
    """The values of a config after all that it extends, and where it stands, its bases first."""

    values: dict[str, Any]
    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """Return its name: that of its file, or of its entry in a file of several."""
        return self.places[-1].name

    @property
    def members(self) -> tuple[str, ...]:
        """Return the configs that share it, where it is the rest of a file of several."""
        last = self.places[-1]
        return () if last.entry is not None else tuple(read_yaml(last.path).get(_CONFIGS, ()))

    def where(self, keys: Sequence[str | int]) -> str:
        """Return file and line of what decides a value, or the file that should have it."""
        last = self.places[-1]
        if not keys:
            return str(last.path)
        decides = (place for place in reversed(self.places) if place.line_of(keys) is not None)
        return next(decides, last).at(keys)


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
    offered = (place for place in _places(group) if not place.name.startswith("_"))
    return tuple(sorted(place.name for place in offered if _is_whole(place)))


def is_path(reference: str) -> bool:
    """Return whether a config is named by its path, and not by its name."""
    return reference.endswith(_SUFFIXES)


def config_name(reference: str) -> str:
    """Return the name of a config that is given by name or by path."""
    return Path(reference).stem if is_path(reference) else reference


def read_config(group: str, reference: str) -> Config:
    """Return a config of a group with all that it extends.

    Args:
        group: a folder of configs.
        reference: the name of a config in it, or the path of a file of your own (.yaml, .yml),
            whose `extends` may name packaged configs.

    Raises:
        UserError: no such config, or a file that cannot be read; the message names it.
    """
    return compose(_find(group, reference, Path()), group)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return what a YAML file of keys and values says.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        stamp = path.stat()
        content = _parsed(path, stamp.st_mtime_ns, stamp.st_size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold keys and values")
    return content


@cache
def _parsed(path: Path, modified: int, size: int) -> object:
    # Not at the top: `--help` shows defaults out of a file, and importing this takes 0.1 s.
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
    """Return `base` with the values of `over`: blocks key by key, all else as a whole."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        inside = isinstance(below, dict) and isinstance(value, dict)
        result[key] = merged(below, value) if inside else value  # type: ignore[arg-type]
    return result


def bases_of(place: Place, group: str) -> list[tuple[str, Place]]:
    """Return what a config extends, and of which groups; an entry extends the rest of its file."""
    bases = _extended(_content(place), group, place)
    file = Place(place.path)
    if place.entry is not None and file.path not in {base.path for _, base in bases}:
        bases.append((group, file))
    return bases


def compose(place: Place, group: str, readers: tuple[Place, ...] = ()) -> Config:
    """Return the config at a place with all that it extends; `readers` are those that extend it.

    Raises:
        UserError: it extends itself, or what is not there, or a file cannot be read.
    """
    if place.identity in {each.identity for each in readers}:
        chain = " extends ".join(each.name for each in (*readers, place))
        raise UserError(f"{readers[-1].at([_EXTENDS])}: {chain}")
    content = _content(place)
    for key in _MOVED.keys() & content.keys():
        raise UserError(f"{place.at([key])}: {key}: unknown key", hint=_MOVED[key])
    below = [compose(base, of, (*readers, place)) for of, base in bases_of(place, group)]
    values: dict[str, Any] = {}
    for config in below:
        values = merged(values, config.values)
    values = merged(values, _own(content, group, place, readers))
    places = dict.fromkeys(each for config in below for each in config.places)
    return Config(copy.deepcopy(values), (*places, place))


def _content(place: Place) -> dict[str, Any]:
    content = read_yaml(place.path)
    return content if place.entry is None else content[_CONFIGS][place.entry] or {}


def _own(
    content: Mapping[str, Any], group: str, place: Place, readers: tuple[Place, ...]
) -> dict[str, Any]:
    """Return what a file says itself, with what its blocks extend."""
    own: dict[str, Any] = {}
    for key, value in content.items():
        if key in (_EXTENDS, _CONFIGS):
            continue
        if isinstance(value, dict):
            block: dict[str, Any] = {}
            for of, base in _extended(value, group, place):
                block = merged(block, compose(base, of, (*readers, place)).values)
            value = merged(block, _own(value, group, place, readers))
        own[key] = value
    return own


def _extended(content: Mapping[str, Any], group: str, place: Place) -> list[tuple[str, Place]]:
    """Return the configs that a file or a block of it extends, and their groups."""
    listed = content.get(_EXTENDS, [])
    references = listed if isinstance(listed, list) else [listed]
    found = []
    for reference in references:
        if not isinstance(reference, str):
            raise UserError(
                f"{place.at([_EXTENDS])}: extends={reference}: expected the name of a config, the "
                "path of a file (.yaml), or a list of them"
            )
        other, _, name = ("", "", reference) if is_path(reference) else reference.rpartition("/")
        try:
            found.append((other or group, _find(other or group, name, place.path.parent)))
        except UserError as error:
            where = place.at([_EXTENDS])
            raise UserError(f"{where}: extends: {error.what}", hint=error.hint) from error
    return found


def _find(group: str, reference: str, folder: Path) -> Place:
    if is_path(reference):
        path = folder / Path(reference)
        try:
            found = path.is_file()
        except OSError as error:  # a name that is too long
            raise UserError(f"{reference:.200}: {error.strerror}") from error
        if not found:
            raise UserError(f"{reference}: no such file")
        if _CONFIGS in read_yaml(path):
            raise UserError(
                f"{Place(path).at([_CONFIGS])}: a file that is named by its path holds one config",
                hint="Write each config into a file of its own; they may extend a common one.",
            )
        return Place(path)
    places = {place.name: place for place in _places(group)}
    if reference not in places:
        hint = nearest(reference, options(group))
        if Path(f"{reference}.yaml").is_file():
            hint = f"A file of your own is named with its ending: {reference}.yaml"
        raise UserError(f"{group}={reference}: no such option", hint=hint)
    return places[reference]


def _places(group: str) -> list[Place]:
    """Return all configs of a group; an entry takes the place of a file of its name."""
    paths = sorted((config_dir() / group).glob("*.yaml"))
    entries = (
        Place(path, entry) for path in paths for entry in read_yaml(path).get(_CONFIGS) or ()
    )
    return [*map(Place, paths), *entries]


def _is_whole(place: Place) -> bool:
    return place.entry is not None or _CONFIGS not in read_yaml(place.path)
