"""Which cell belongs where in which table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from amnesia_bench.config.messages import nearest
from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.errors import UserError
from amnesia_bench.records.ids import BEFORE_SFT
from amnesia_bench.records.report import Column
from amnesia_bench.reporting.answers import answers_of
from amnesia_bench.reporting.paths import typed_path
from amnesia_bench.reporting.pooling import SlotCells
from amnesia_bench.reporting.sources import FoundCell
from amnesia_bench.reporting.table_layout import full_name, row_of, rows_of, table_columns

# Model, name of the row, key of the column.
TableSlot = tuple[str, str, str]
FilledSlots = Mapping[TableSlot, SlotCells]


def fill_slots(found: Iterable[FoundCell], table: TableConfig) -> FilledSlots:
    """Sort cells into a table.

    Cells of other models and rows, and of columns that the table lacks, are left out: an
    evaluation writes more metrics than a table shows.

    Raises:
        UserError: two different cells for one slot, or answers that are not the cell's.
    """
    columns = table_columns(table)
    sorted_: defaultdict[TableSlot, dict[str | None, FoundCell]] = defaultdict(dict)
    for each in found:
        row = _row_for(each, table)
        for column in columns if row is not None else ():
            if row is not None and _belongs(each, column):
                seeds = sorted_[each.model, row, column.key]
                seeds[each.seed] = _one_of(seeds.get(each.seed), each)
    return {
        slot: _placed(tuple(sorted_[slot].values()))
        for model in table.models
        for row in rows_of(table)
        for column in columns
        if (slot := (model, row.name, column.key)) in sorted_
    }


def refuse_ambiguous(found: Iterable[FoundCell], tables: Mapping[str, TableConfig]) -> None:
    """Refuse cells without a fine-tune's name that would fit into tables of several.

    Raises:
        UserError: there are such cells.
    """
    for each in found:
        if "@" in each.method or each.method == BEFORE_SFT:
            continue
        fitting = {name: t.sft for name, t in tables.items() if _row_for(each, t) is not None}
        if len(set(fitting.values())) > 1:
            listed = ", ".join(f"{sft} ({name})" for name, sft in fitting.items())
            label = f"{each.model}/{each.method}"
            raise UserError(
                f"{each.path}: {label} after which fine-tune? {listed}",
                hint=f"Name it: --cells {label}@{next(iter(fitting.values()))}=DIR",
            )


def unused_cells(
    found: Iterable[FoundCell], placed: Sequence[FilledSlots], tables: Mapping[str, TableConfig]
) -> tuple[str, ...]:
    """Say once of each artifact and row why none of its cells is in any table."""
    used = {_key(cell) for filled in placed for slot in filled.values() for cell in slot.cells}
    unused = [each for each in found if _key(each) not in used]
    return tuple(
        dict.fromkeys(
            f"{typed_path(each.artifact or each.path)}: {_why_not(each, tables)}" for each in unused
        )
    )


def without_column(
    found: Iterable[FoundCell], placed: Sequence[FilledSlots], tables: Mapping[str, TableConfig]
) -> tuple[str, ...]:
    """Say which tasks and lengths of the rows that tables show have no column in any of them.

    Other metrics of a task that is shown are no news: an evaluation writes more than a table takes.
    """
    shown = {
        (cell.cell.task, cell.cell.context_tokens)
        for filled in placed
        for slot in filled.values()
        for cell in slot.cells
    }
    rows = [each for each in found if any(_row_for(each, t) is not None for t in tables.values())]
    asked = dict.fromkeys((each.cell.task, each.cell.context_tokens) for each in rows)
    names = [
        task if length is None else f"{task} at {length}"
        for task, length in asked
        if (task, length) not in shown
    ]
    if not names or not shown:
        return ()
    return (f"no column in {', '.join(tables)}: {', '.join(names)}",)


def _key(found: FoundCell) -> tuple[Path, str, str]:
    return (found.artifact or found.path, found.model, found.method)


def _why_not(found: FoundCell, tables: Mapping[str, TableConfig]) -> str:
    where = ", ".join(tables)
    models = sorted({model for table in tables.values() for model in table.models})
    rows = sorted({row for table in tables.values() for row in _labels(table)})
    for kind, name, known in (("model", found.model, models), ("method", found.method, rows)):
        if name not in known:
            return f"no {kind} {typed_path(name)!r} in {where}, left out. {nearest(name, known)}"
    return f"in {where} this row has no column for its task, length, metric and scorer, left out"


def _labels(table: TableConfig) -> set[str]:
    """Return every METHOD and METHOD@SFT that means a row of a table."""
    names = [row.name for row in rows_of(table)]
    return {*names, *(full_name(name, table.sft) for name in names)}


def _row_for(found: FoundCell, table: TableConfig) -> str | None:
    """Return the name of the row that a cell belongs to; None where the table has none."""
    wanted = row_of(found.method, table.sft)
    if found.model not in table.models:
        return None
    rows = rows_of(table)
    return next(
        (row.name for row in rows if (row.method, row.sft) == (wanted.method, wanted.sft)), None
    )


def _placed(cells: tuple[FoundCell, ...]) -> SlotCells:
    seeds = [found.seed for found in cells]
    if None in seeds and len(seeds) > 1:
        paths = "\n  ".join(str(found.path) for found in cells)
        raise UserError(
            f"cells with and without a seed for one place:\n  {paths}",
            hint="Name the seed of each, or of none: --cells MODEL/METHOD/SEED=DIR.",
        )
    known = [answers_of(found) for found in cells]
    answers = {key: value for each in known for key, value in each.items()}
    return SlotCells(cells, answers if all(known) else {})


def _belongs(found: FoundCell, column: Column) -> bool:
    cell = found.cell
    asked = (column.task, column.metric, column.context_tokens)
    scorer = cell.settings.get("scorer")
    return asked == (cell.task, cell.metric, cell.context_tokens) and column.scorer in (
        None,
        scorer,
    )


def _one_of(known: FoundCell | None, new: FoundCell) -> FoundCell:
    if known is None or known.cell == new.cell:
        return new if known is None else known
    if known.cell.value is None or new.cell.value is None:
        return new if known.cell.value is None else known
    where = f"{new.model}, {new.method}, {new.cell.task} {new.cell.metric}"
    if new.cell.context_tokens is not None:
        where += f" at {new.cell.context_tokens}"
    raise UserError(
        f"two cells for one place ({where}):\n  {known.path}\n  {new.path}",
        hint="Leave one of them out, or label them by seed: --cells MODEL/METHOD/SEED=DIR.",
    )


def differing_settings(slots: FilledSlots) -> tuple[str, ...]:
    """Say where the rows of one model were measured with different settings in one column."""
    values: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    for (model, _, column), placed in slots.items():
        for found in placed.cells:
            for name, value in found.cell.settings.items():
                values[model, column, name].add(typed_path(value))
    differing: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (model, column, name), seen in values.items():
        if len(seen) > 1:
            differing[model, name, " and ".join(sorted(seen))].append(column)
    return tuple(
        f"{model}: {name} is {seen} in different rows of {', '.join(columns)}"
        for (model, name, seen), columns in differing.items()
    )
