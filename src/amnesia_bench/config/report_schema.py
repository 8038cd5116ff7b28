"""A table of results and the claims it decides: one file of configs/report each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, FiniteFloat, PositiveInt, model_validator

from amnesia_bench.config.schema import Frozen

Name = Annotated[str, Field(min_length=1)]
# `niah_single_3@longest` means the same column whatever lengths a table has.
LONGEST, SHORTEST = "longest", "shortest"


class Score(Frozen):
    """A column that has no context length: a metric of a reasoning task.

    `scorer` is that of the cells which belong here; null takes any.
    """

    task: Name
    metric: Name
    scorer: str | None
    label: Name

    @property
    def key(self) -> str:
        return f"{self.task} {self.metric}"


class Recall(Frozen):
    """The columns of recall: every task at every length, in tokens."""

    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class Claim(Frozen):
    """An inequality between the values of one row of models: sum of weight * value > `above`.

    Values are fractions. It must hold in each of `columns` for each of `models` (null: all of the
    table). With `than`, what the same sum is in that column is subtracted. `place` says where the
    paper makes the claim, `aim` that it is one of ours and not the paper's.
    """

    id: Name
    text: Name
    place: Name
    models: tuple[Name, ...] | None = None
    columns: Annotated[tuple[Name, ...], Field(min_length=1)]
    weights: Annotated[Mapping[str, FiniteFloat], Field(min_length=1)]
    than: Name | None = None
    above: FiniteFloat
    aim: bool = False


class TableConfig(Frozen):
    """Rows are `models` x `methods` (id to label), columns recall, then scores.

    `published` names the paper's tables that hold the same runs; a value is looked up in them in
    this order.
    """

    title: Name
    models: Annotated[tuple[Name, ...], Field(min_length=1)]
    methods: Annotated[Mapping[str, Name], Field(min_length=1)]
    recall: Recall
    scores: tuple[Score, ...]
    published: tuple[Name, ...]
    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _claims_have_columns(self) -> Self:
        known = {score.key for score in self.scores}
        lengths = {LONGEST, SHORTEST, *map(str, self.recall.lengths)}
        for claim in self.claims:
            for column in (*claim.columns, *([claim.than] if claim.than else [])):
                task, _, length = column.partition("@")
                if column not in known and (task not in self.recall.tasks or length not in lengths):
                    raise ValueError(f"claim {claim.id}: no column {column}")
            for model in claim.models or ():
                if model not in self.models:
                    raise ValueError(f"claim {claim.id}: no model {model}")
        return self
