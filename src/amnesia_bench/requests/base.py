"""Base classes of all requests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, Field

from amnesia_bench.config.schema import Frozen

# The path of a folder or file; a string is converted to a path.
Location = Annotated[Path, Field(strict=False)]


class Request(Frozen):
    """A complete description of one use case, except for the output path."""


class StageRequest(Request):
    """A request that a pipeline stage can execute; its result is one artifact.

    In a stage, locations are relative to the store (`trained/ID`): the request identifies its input
    artifacts independently of the store's path. `below` makes the locations absolute.

    Attributes:
        front_door: name of the function of `amnesia_bench` that executes it: `door(request, out)`.
        out_file: name of the file that the function writes in the artifact's folder; "" if it
            writes the folder itself.
    """

    front_door: ClassVar[str]
    out_file: ClassVar[str] = ""

    def below(self, store: Path) -> Self:
        """Return the request with its relative locations joined to the path of a store."""
        changed = {name: _below(getattr(self, name), store) for name in type(self).model_fields}
        return self.model_copy(update=changed)


def _below(value: Any, store: Path) -> Any:
    if isinstance(value, Path):
        return store / value
    if isinstance(value, Mapping):
        return {key: _below(item, store) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_below(item, store) for item in value)
    if isinstance(value, BaseModel):
        changed = {name: _below(getattr(value, name), store) for name in type(value).model_fields}
        return value.model_copy(update=changed)
    return value
