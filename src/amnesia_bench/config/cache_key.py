"""The cache key of a config: the fields that affect a result.

Fields that do not affect results are marked `NEUTRAL` where they are declared: names, checkpoint
cadence, logging, how work is batched (the same numbers, up to the order of summation). A field
without the mark is part of the key, which is the safe default.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel


class Neutral:
    """Marks a field that does not affect results: `Annotated[bool, NEUTRAL]`."""


NEUTRAL = Neutral()


def cache_key(value: Any) -> Any:
    """Return the fields of a config, or of a part of one, that affect results, as JSON values."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: cache_key(getattr(value, name))
            for name, field in fields.items()
            if NEUTRAL not in field.metadata
        }
    if isinstance(value, Mapping):
        return {str(key): cache_key(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [cache_key(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value.as_posix() if isinstance(value, Path) else value
