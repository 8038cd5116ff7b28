"""The cache key of a config: those of its fields that affect results.

Fields that do not affect results are marked `NEUTRAL` in their declaration, for example names,
checkpoint intervals, logging and batch sizes that change only the order of summation. A field
without this mark is part of the key, which is the safe default. The order of a mapping is not part
of the key, unless its field is marked `ORDERED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Neutral:
    """Type of the mark for fields that do not affect results: `Annotated[bool, NEUTRAL]`."""


NEUTRAL = Neutral()


class Ordered:
    """Type of the mark for mappings whose order affects results: `Annotated[dict, ORDERED]`."""


ORDERED = Ordered()


class Later:
    """Type of the mark for fields that were added later: `Annotated[Path | None, LATER]`.

    Such a field is part of the key only if it differs from its default, so that the keys from
    before it was added stay the same.
    """


LATER = Later()


def cache_key(value: Any) -> Any:
    """Return the fields that affect results, as JSON values; `value` is a config or part of one."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: _ordered(getattr(value, name), field)
            for name, field in fields.items()
            if NEUTRAL not in field.metadata and not _is_unused(getattr(value, name), field)
        }
    if isinstance(value, Mapping):
        return {str(key): cache_key(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [cache_key(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value.as_posix() if isinstance(value, Path) else value


def _is_unused(value: Any, field: FieldInfo) -> bool:
    return LATER in field.metadata and bool(value == field.default)


def _ordered(value: Any, field: FieldInfo) -> Any:
    key = cache_key(value)
    return [*map(list, key.items())] if ORDERED in field.metadata else key
