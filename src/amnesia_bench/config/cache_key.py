"""Which fields of a config decide a result, and so belong to the key of what it makes.

Fields that do not affect results are marked where they are declared: names, when a state is saved,
logging, how work is batched (the same numbers, up to the order in which they are added). A field
without the mark belongs to the key, which is the safe side.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel


class Neutral:
    """The mark of a field that does not affect results: `Annotated[bool, NEUTRAL]`."""


NEUTRAL = Neutral()


def cache_key(value: Any) -> Any:
    """Return what of a config, or of a part of one, decides a result: plain JSON values."""
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
