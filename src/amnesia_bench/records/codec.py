"""Frozen dataclasses to JSON and back, exactly: no key is dropped, added or guessed."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from amnesia_bench.errors import UserError

Record = TypeVar("Record")


def to_json(value: object) -> Any:
    """Return a record as plain JSON values (dict, list, str, int, float, bool, None)."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def from_json(record: type[Record], data: object, where: str) -> Record:
    """Build a record from parsed JSON.

    Args:
        record: the dataclass to build.
        data: what `json.loads` returned.
        where: the file it came from, for messages.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type.
    """
    return cast("Record", _decode(record, data, f"{where}:"))


def _decode(expected: Any, value: object, at: str) -> object:
    origin = get_origin(expected)
    if expected is object:
        return value
    if origin in (Union, types.UnionType):
        return _decode_optional(expected, value, at)
    if origin is tuple:
        items = _typed(list, value, at)
        return tuple(
            _decode(get_args(expected)[0], item, f"{at}[{i}]") for i, item in enumerate(items)
        )
    if origin is not None and issubclass(origin, Mapping):
        mapping = _typed(dict, value, at)
        return {
            key: _decode(get_args(expected)[1], item, _below(at, key))
            for key, item in mapping.items()
        }
    if is_dataclass(expected):
        return _decode_record(expected, value, at)
    if issubclass(expected, Enum):
        try:
            return expected(value)
        except ValueError as error:
            raise _error(at, str(error)) from error
    return _typed(expected, value, at)


def _decode_optional(expected: Any, value: object, at: str) -> object:
    if value is None and types.NoneType in get_args(expected):
        return None
    (kind,) = (arg for arg in get_args(expected) if arg is not types.NoneType)
    return _decode(kind, value, at)


def _decode_record(record: Any, value: object, at: str) -> object:
    data = _typed(dict, value, at)
    hints = _hints(record)
    names = [field.name for field in fields(record)]
    for problem, keys in (
        ("unknown key", sorted(set(data) - set(names))),
        ("missing key", [name for name in names if name not in data]),
    ):
        if keys:
            raise _error(at, f"{problem} {', '.join(map(repr, keys))} in {record.__name__}")
    decoded = {name: _decode(hints[name], data[name], _below(at, name)) for name in names}
    try:
        return record(**decoded)
    except ValueError as error:
        raise _error(at, str(error)) from error


@cache
def _hints(record: Any) -> dict[str, Any]:
    # Slow, and asked for once a line of a file.
    return get_type_hints(record)


def _typed(kind: Any, value: object, at: str) -> Any:
    # bool is an int to isinstance, never to us; an int is a fine float.
    kinds = (float, int) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise _error(at, f"expected {kind.__name__}, got {value!r:.80}")
    return value


def _below(at: str, name: str) -> str:
    return f"{at} {name}" if at.endswith(":") else f"{at}.{name}"


def _error(at: str, problem: str) -> UserError:
    return UserError(f"{at.removesuffix(':')}: {problem}")
