"""Base classes of all requests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, Field

from amnesia_bench.config.schema import Frozen


def _not_empty(value: object) -> object:
    # Path("") is the working directory, which nobody means by an empty text.
    if value == "":
        raise ValueError("the path is empty")
    return value


# The path of a folder or file. Strings are accepted and converted to `Path`.
Location = Annotated[Path, Field(strict=False), BeforeValidator(_not_empty)]


class Request(Frozen):
    """All inputs and options of one use case, except for the output path."""


class StageRequest(Request):
    """A request that a pipeline stage can execute and that produces one artifact.

    The locations in a stage's request are relative to the store (`trained/ID`), so the request does
    not depend on the store's path. `below` joins them to that path.

    Attributes:
        front_door: name of the function in `amnesia_bench` that executes the request when it is
            called as `function(request, out)`.
        out_file: name of the file in the artifact's folder to pass as `out`; "" to pass the folder
            itself.
    """

    front_door: ClassVar[str]
    out_file: ClassVar[str] = ""

    def below(self, store: Path) -> Self:
        """Return a copy of the request with its relative locations joined to a store's path."""
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
