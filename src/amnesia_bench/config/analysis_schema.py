"""Schema of the analyses of a profile: on which texts and prompts, and how many of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from amnesia_bench.config.messages import check_known
from amnesia_bench.config.schema import Frozen
from amnesia_bench.records.ids import RECALL_TASKS

AnalysisKind = Literal["autocorrelation", "gradients", "maps", "divergence"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]


class AnalysisPlan(Frozen):
    """The sizes of a profile's analyses, and the data on which they measure.

    Attributes:
        data: configs of configs/data by the name of the source in figures and claims. Gradients are
            measured on all of them.
        repeated: the sources whose autocorrelation is measured.
        max_distance: the largest distance of an autocorrelation, in tokens.
        tokens: the length of texts, in tokens, for gradients and divergences.
        texts: the maximum number of texts per source.
        task: the NIAH task on whose prompts attention is measured.
        length: the length of these prompts, in tokens.
        prompts: the number of these prompts.
        map_size: the number of rows and columns of an attention map.
    """

    data: Annotated[Mapping[Name, Name], Field(min_length=1)]
    repeated: Annotated[tuple[Name, ...], Field(min_length=1)]
    max_distance: PositiveInt
    tokens: PositiveInt
    texts: PositiveInt
    task: Name
    length: PositiveInt
    prompts: PositiveInt
    map_size: PositiveInt

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        check_known("task", self.task, RECALL_TASKS)
        for name in self.repeated:
            check_known("repeated", name, list(self.data))
        return self
