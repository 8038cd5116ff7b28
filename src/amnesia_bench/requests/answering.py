"""Requests whose execution has a model answer prompts, which several processes can divide."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from amnesia_bench.config.cache_key import NEUTRAL
from amnesia_bench.config.schema import Frozen
from amnesia_bench.requests.base import Location, StageRequest
from amnesia_bench.requests.engines import EngineChoice


class AnswerPart(Frozen):
    """Part `index` (from 1) of the answers, if they are divided into `count` parts.

    The documents, which are prompts or problems, are divided into contiguous ranges. Neighbours
    share prefixes, and all answers to one document are in the same part.
    """

    index: PositiveInt
    count: PositiveInt

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.index > self.count:
            raise ValueError(f"there is no part {self.index} of {self.count}")
        return self

    def documents(self, total: int) -> range:
        """Return the documents of this part, if there are `total` documents."""
        return range(
            total * (self.index - 1) // self.count,
            total * self.index // self.count,
        )


class MergedParts(Frozen):
    """All answers, collected from the folders that the parts were written to."""

    folders: Annotated[tuple[Location, ...], Field(min_length=1)]


class AnsweringRequest(StageRequest):
    """A request whose execution has a model answer prompts.

    Attributes:
        engine: inference engine, and overrides of the model's config.
        division: `AnswerPart` generates only one part of the answers. `MergedParts` generates none:
            it collects those of the parts, and the result is the same as without parts. None
            generates all answers.
    """

    engine: EngineChoice = EngineChoice()
    # Not in the cache key: the key decides what an answer is, not which process generates it. The
    # stage of a part has the hash of the whole stage and the part in its name (`pipeline.parts`).
    division: Annotated[AnswerPart | MergedParts | None, NEUTRAL] = None

    @property
    def runs_vllm(self) -> bool:
        """Whether the request is executed with vLLM, which needs an environment of its own."""
        return self.engine.name == "vllm" and not isinstance(self.division, MergedParts)
