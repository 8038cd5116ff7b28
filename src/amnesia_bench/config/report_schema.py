"""Schema of configs/report: a table of results, and the claims that it tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, FiniteFloat, PositiveInt, model_validator

from amnesia_bench.config.messages import check_known
from amnesia_bench.config.schema import Frozen
from amnesia_bench.records.ids import REASONING_TASKS, RECALL_TASKS, known_metrics

Name = Annotated[str, Field(min_length=1)]
# `niah_single_3@longest` works for every choice of lengths; a task without a metric means its first
# score.
LONGEST, SHORTEST = "longest", "shortest"


class Score(Frozen):
    """A column without a context length: a metric of a reasoning task.

    `scorer` selects the cells of one scorer; null accepts any.
    """

    task: Name
    metric: Name
    scorer: str | None
    label: Name

    @property
    def key(self) -> str:
        return f"{self.task} {self.metric}"

    @model_validator(mode="after")
    def _an_evaluation_writes_it(self) -> Self:
        check_known("task", self.task, list(REASONING_TASKS))
        check_known("metric", self.metric, known_metrics(self.task, self.metric))
        if self.scorer is not None:
            check_known("scorer", self.scorer, REASONING_TASKS[self.task].scorers)
        return self


class RecallColumns(Frozen):
    """The columns of recall: every task at every length, in tokens."""

    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _an_evaluation_writes_them(self) -> Self:
        for task in self.tasks:
            check_known("tasks", task, RECALL_TASKS)
        return self


class Claim(Frozen):
    """An inequality between the rows of a model: sum of weight * value > `above`.

    Values are fractions. The inequality must hold in each of `columns` for each of `models` (null:
    all of the table). With `than`, the same sum in column `than` is subtracted. `place` is the
    section of the paper that makes the claim; `aim` marks a target of this project instead.
    """

    text: Name
    place: Name
    models: tuple[Name, ...] | None = None
    columns: Annotated[tuple[Name, ...], Field(min_length=1)]
    weights: Annotated[Mapping[str, FiniteFloat], Field(min_length=1)]
    than: Name | None = None
    above: FiniteFloat
    aim: bool = False


class TradeOff(Frozen):
    """A figure of recall against reasoning: one point per row (name to label), with intervals.

    If `rows` is null, the rows of the table are drawn. Each of `lines` connects rows in its order.
    """

    recall: Name
    score: Name
    rows: Annotated[Mapping[str, Name], Field(min_length=1)] | None = None
    lines: tuple[tuple[Name, ...], ...] = ()


class TableConfig(Frozen):
    """A table: rows are `models` x `methods` (row to label), columns are recall, then scores.

    A row is METHOD for the fine-tune `sft`, or METHOD@SFT for another fine-tune. `published` lists
    the paper's tables that contain the same runs; a value is looked up in this order. If the paper
    has no such runs, `stands_for` is the table of the paper whose claims of the same id are
    repeated.
    """

    title: Name
    sft: Name
    models: Annotated[tuple[Name, ...], Field(min_length=1)]
    methods: Annotated[Mapping[str, Name], Field(min_length=1)]
    recall: RecallColumns
    scores: tuple[Score, ...]
    published: tuple[Name, ...]
    stands_for: Name | None = None
    trade_off: TradeOff | None = None
    claims: Mapping[Name, Claim]

    @model_validator(mode="after")
    def _columns_and_models_exist(self) -> Self:
        for name, claim in self.claims.items():
            for column in (*claim.columns, *([claim.than] if claim.than else [])):
                self._check_column(column, f"claim {name}")
            for model in claim.models or ():
                if model not in self.models:
                    raise ValueError(f"claim {name}: no model {model}")
        if self.trade_off is not None:
            self._check_column(self.trade_off.recall, "trade_off.recall")
            self._check_column(self.trade_off.score, "trade_off.score")
            for row in (row for line in self.trade_off.lines for row in line):
                if row not in self.points:
                    raise ValueError(f"trade_off.lines: no row {row}")
        return self

    @property
    def points(self) -> Mapping[str, str]:
        """The rows in the trade-off figure, and their labels; empty if there is no figure."""
        return {} if self.trade_off is None else self.trade_off.rows or self.methods

    def _check_column(self, column: str, where: str) -> None:
        task, _, length = column.partition("@")
        lengths = {LONGEST, SHORTEST, *map(str, self.recall.lengths)}
        scores = {name for score in self.scores for name in (score.key, score.task)}
        if column not in scores and (task not in self.recall.tasks or length not in lengths):
            raise ValueError(f"{where}: no column {column}")

    @model_validator(mode="after")
    def _own_rows_are_named_by_method(self) -> Self:
        claimed = [row for claim in self.claims.values() for row in claim.weights]
        for row in (*self.methods, *claimed, *self.points):
            method, at, sft = row.partition("@")
            if not method or (at and sft in ("", self.sft)):
                raise ValueError(f"row {row}: expected METHOD, or METHOD@SFT of another fine-tune")
        return self
