"""The columns of a table, in the paper's order, out of its config."""

from __future__ import annotations

from amnesia_bench.config.report_schema import LONGEST, SHORTEST, TableConfig
from amnesia_bench.records.ids import RECALL_METRIC
from amnesia_bench.records.report import Column


def table_columns(table: TableConfig) -> tuple[Column, ...]:
    """Return recall by task and length, then the scores."""
    recall = [
        Column(
            key=recall_key(task, length),
            group=task_label(task),
            label=length_label(length),
            task=task,
            metric=RECALL_METRIC,
            scorer=None,
            context_tokens=length,
        )
        for task in table.recall.tasks
        for length in table.recall.lengths
    ]
    scores = [
        Column(
            key=score.key,
            group=score.label.partition(" ")[0],
            label=score.label.partition(" ")[2],
            task=score.task,
            metric=score.metric,
            scorer=score.scorer,
            context_tokens=None,
        )
        for score in table.scores
    ]
    return (*recall, *scores)


def recall_key(task: str, context_tokens: int) -> str:
    """Return the key of a column of recall."""
    return f"{task}@{context_tokens}"


def resolved(column: str, table: TableConfig) -> str:
    """Return a column's key with the table's own length for `longest`, its score for a task."""
    for score in table.scores:
        if column == score.task:
            return score.key
    task, _, length = column.partition("@")
    ends = {LONGEST: max(table.recall.lengths), SHORTEST: min(table.recall.lengths)}
    return recall_key(task, ends[length]) if length in ends else column


def task_label(task: str) -> str:
    """Return a task's name as the paper spells it."""
    return task.replace("niah_single_", "NIAH-Single-")


def length_label(context_tokens: int) -> str:
    """Return a length as the paper spells it: 262144 is 256K."""
    thousands, rest = divmod(context_tokens, 1024)
    return f"{thousands}K" if thousands and not rest else str(context_tokens)
