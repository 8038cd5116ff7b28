"""List the rows and columns of a table in the paper's order, and resolve the names of rows.

A row is named by its method and its fine-tune, for example `restored@tulu3`. The suffix is omitted
for the table's default fine-tune, `sft`. The row `pre` is the checkpoint before SFT, which all
fine-tunes share.
"""

from __future__ import annotations

from dataclasses import dataclass

from amnesia_bench.config.report_schema import LONGEST, SHORTEST, TableConfig
from amnesia_bench.records.ids import AFTER_SFT, BEFORE_SFT, RECALL_METRIC
from amnesia_bench.records.report import Column


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row: its name in the table's config, its method, and its fine-tune (None before SFT)."""

    name: str
    method: str
    sft: str | None


def row_of(name: str, sft: str) -> TableRow:
    """Return the row to which a name refers in a table whose default fine-tune is `sft`."""
    method, _, own = name.partition("@")
    return TableRow(name=name, method=method, sft=None if method == BEFORE_SFT else own or sft)


def full_name(name: str, sft: str) -> str:
    """Return the name METHOD@SFT of a row, or METHOD for the row before SFT."""
    row = row_of(name, sft)
    return row.method if row.sft is None else f"{row.method}@{row.sft}"


def rows_of(table: TableConfig) -> tuple[TableRow, ...]:
    """Return the rows that the table shows, then those that only claims and figures need."""
    needed = [name for claim in table.claims.values() for name in claim.weights]
    names = dict.fromkeys([*table.methods, *needed, *table.points])
    return tuple(row_of(name, table.sft) for name in names)


def after_sft(name: str, sft: str) -> str | None:
    """Return the name of the unrepaired row after the same SFT; None if `name` is that row.

    Every other row is compared with it. The row before SFT is compared with the row after `sft`.
    """
    row = row_of(name, sft)
    if row.method == AFTER_SFT:
        return None
    return AFTER_SFT if row.sft in (None, sft) else f"{AFTER_SFT}@{row.sft}"


def table_columns(table: TableConfig) -> tuple[Column, ...]:
    """Return the columns of a table: recall by task and length, then the benchmark scores."""
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
    """Return the key of a recall column."""
    return f"{task}@{context_tokens}"


def column_key(column: str, table: TableConfig) -> str:
    """Return the key of a column that a config may name by TASK@longest, TASK@shortest or a task.

    A task without a length refers to its score. Any other name is already a key.
    """
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
