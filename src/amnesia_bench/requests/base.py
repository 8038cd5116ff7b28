"""What all requests have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, Field

from amnesia_bench.config.schema import Frozen

# A folder or a file; a text is taken for its path.
Location = Annotated[Path, Field(strict=False)]


class Request(Frozen):
    """One use case, described completely but for where its result goes."""


class StageRequest(Request):
    """A request that a stage of a pipeline can hold: its answer is one artifact.

    In a stage, locations are relative to the store (`trained/ID`), so that the request says which
    artifacts it reads and not where they happen to be; see `below`.

    Attributes:
        front_door: the function of `amnesia_bench` that answers it: `door(request, out)`.
        out_file: the file in the artifact's folder that the function writes; "" for the folder.
    """

    front_door: ClassVar[str]
    out_file: ClassVar[str] = ""

    def below(self, store: Path) -> Self:
        """Return the request with relative locations taken from a store."""
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
