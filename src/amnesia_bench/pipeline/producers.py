"""Whether a table's columns are what evaluations write: one list of tasks and metrics for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amnesia_bench.config.files import is_path
from amnesia_bench.config.messages import nearest
from amnesia_bench.config.report_schema import Score, TableConfig
from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.cells import metrics_of
from amnesia_bench.reasoning.tasks import TASKS
from amnesia_bench.recall.niah.tasks import TASKS as RECALL_TASKS


def check_columns(name: str, table: TableConfig) -> None:
    """Refuse a table with a column that no evaluation can fill.

    Raises:
        UserError: a task, a metric or a scorer that there is not.
    """
    where = name if is_path(name) else f"report={name}"
    for i, task in enumerate(table.recall.tasks):
        _one_of(task, list(RECALL_TASKS), f"{where}: recall.tasks[{i}]")
    for i, score in enumerate(table.scores):
        _check_score(score, f"{where}: scores[{i}]")


def _check_score(score: Score, where: str) -> None:
    task = TASKS[_one_of(score.task, list(TASKS), f"{where}.task")]
    metric, at, repeats = score.metric.partition("@")
    count = int(repeats) if repeats.isdecimal() and len(repeats) < 6 and int(repeats) else 1
    known = metrics_of(task, count)
    if at and metric == "pass":  # of any k up to the number of answers
        known = metrics_of(task, max(count, 16))
    _one_of(score.metric, list(known), f"{where}.metric")
    if score.scorer is not None:
        _one_of(score.scorer, list(task.scorers), f"{where}.scorer")


def _one_of(name: str, known: Sequence[str] | Mapping[str, object], where: str) -> str:
    if name not in known:
        raise UserError(f"{where}={name}: no evaluation writes it", hint=nearest(name, list(known)))
    return name
