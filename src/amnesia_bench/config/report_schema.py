"""Schema of configs/report: a table of results, and the claims to test with its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, FiniteFloat, PositiveInt, model_validator

from amnesia_bench.config.messages import check_known
from amnesia_bench.config.schema import Frozen
from amnesia_bench.records.ids import REASONING_TASKS, RECALL_TASKS, known_metrics

Name = Annotated[str, Field(min_length=1)]
# The column `niah_single_3@longest` exists for any choice of lengths. A task without a metric is a
# reference to the first score of that task.
LONGEST, SHORTEST = "longest", "shortest"


class Score(Frozen):
    """A score column, which has no context length: one metric of a reasoning task.

    `scorer` selects the cells of one scorer; null accepts the cells of any scorer.
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
    """The recall columns: one for each task and length, in tokens."""

    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _an_evaluation_writes_them(self) -> Self:
        for task in self.tasks:
            check_known("tasks", task, RECALL_TASKS)
        return self


class Claim(Frozen):
    """An inequality between the rows of a model: the sum of weight * value is greater than `above`.

    `weights` maps rows to weights, and values are fractions. The inequality must hold in each of
    `columns` for each of `models` (null: all models of the table). If `than` is set, the same sum
    in column `than` is subtracted. `place` is the section of the paper that makes the claim; if
    `aim` is true, the claim is a target of this project instead.
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
    """A figure that plots recall against a reasoning score, with one point and interval per row.

    `recall` and `score` are columns. `rows` maps the rows to draw to their labels; null draws all
    rows of the table. Each item of `lines` lists rows to connect by a line, in that order.
    """

    recall: Name
    score: Name
    rows: Annotated[Mapping[str, Name], Field(min_length=1)] | None = None
    lines: tuple[tuple[Name, ...], ...] = ()


class TableConfig(Frozen):
    """A table whose rows are `models` x `methods` and whose columns are recall, then scores.

    `methods` maps the name of each row to its label. A row's name is METHOD for the fine-tune
    `sft`, or METHOD@SFT for another fine-tune. `published` lists the paper's tables that contain
    the same runs; a published value is taken from the first of them that has it. If the paper has
    no such runs, `stands_for` is the paper's table that this table imitates: whether a claim holds
    in the paper is decided by the claim with the same id in that table. `notes` are shown first
    among the notes on the table.
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
    notes: tuple[Name, ...] = ()

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
        """The labels of the rows in the trade-off figure, by row; empty if there is no figure."""
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
