"""The cache key of a config: those of its fields that affect results.

Fields that do not affect results are marked `NEUTRAL` in their declaration, for example names,
checkpoint intervals, logging and batch sizes that change only the order of summation. A field
without this mark is part of the key, which is the safe default.

A field that is marked `ADDED_LATER` is part of the key unless it has its default value. This
default must do exactly what the code did before the field existed, so earlier keys stay valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel


class Neutral:
    """Type of the mark for fields that do not affect results: `Annotated[bool, NEUTRAL]`."""


NEUTRAL = Neutral()


class AddedLater:
    """Type of the mark for fields that only count if they are not at their default value."""


ADDED_LATER = AddedLater()


def cache_key(value: Any) -> Any:
    """Return the fields that affect results, as JSON values; `value` is a config or part of one."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: cache_key(getattr(value, name))
            for name, field in fields.items()
            if NEUTRAL not in field.metadata
            and not (ADDED_LATER in field.metadata and getattr(value, name) == field.default)
        }
    if isinstance(value, Mapping):
        return {str(key): cache_key(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [cache_key(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value.as_posix() if isinstance(value, Path) else value
