"""Assign cells to the slots of tables; a slot is one model, row and column."""

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
from amnesia_bench.reporting.sources import CellEntry
from amnesia_bench.reporting.table_layout import full_name, row_of, rows_of, table_columns

# The model, the name of the row and the key of the column.
TableSlot = tuple[str, str, str]
FilledSlots = Mapping[TableSlot, SlotCells]


def fill_slots(entries: Iterable[CellEntry], table: TableConfig) -> FilledSlots:
    """Assign cells to the slots of a table.

    Cells of other models, rows and columns are skipped, since an evaluation writes more metrics
    than a table shows.

    Raises:
        UserError: two different cells belong to one slot, a slot has cells with and without a seed,
            or the answers in a cell's folder do not match the cell.
    """
    columns = table_columns(table)
    by_slot: defaultdict[TableSlot, dict[str | None, CellEntry]] = defaultdict(dict)
    for entry in entries:
        row = _row_for(entry, table)
        for column in columns if row is not None else ():
            if row is not None and _matches(entry, column):
                seeds = by_slot[entry.model, row, column.key]
                seeds[entry.seed] = _merge_entries(seeds.get(entry.seed), entry)
    return {
        slot: _slot_cells(tuple(by_slot[slot].values()))
        for model in table.models
        for row in rows_of(table)
        for column in columns
        if (slot := (model, row.name, column.key)) in by_slot
    }


def refuse_ambiguous(entries: Iterable[CellEntry], tables: Mapping[str, TableConfig]) -> None:
    """Raise an error if a label without a fine-tune matches tables of different fine-tunes.

    Raises:
        UserError: a label is ambiguous.
    """
    for entry in entries:
        if "@" in entry.method or entry.method == BEFORE_SFT:
            continue
        matching = {name: t.sft for name, t in tables.items() if _row_for(entry, t) is not None}
        if len(set(matching.values())) > 1:
            choices = ", ".join(f"{sft} ({name})" for name, sft in matching.items())
            label = f"{entry.model}/{entry.method}"
            raise UserError(
                f"{entry.path}: {label} may be after any of these fine-tunes: {choices}",
                hint=f"Name one: --cells {label}@{next(iter(matching.values()))}=DIR",
            )


def unused_cells(
    entries: Iterable[CellEntry], filled: Sequence[FilledSlots], tables: Mapping[str, TableConfig]
) -> tuple[str, ...]:
    """Return a note, with the reason, per artifact and label none of whose cells is in a table."""
    used = {_key(cell) for slots in filled for slot in slots.values() for cell in slot.cells}
    unused = [entry for entry in entries if _key(entry) not in used]
    return tuple(
        dict.fromkeys(
            f"{typed_path(entry.artifact or entry.path)}: {_why_unused(entry, tables)}"
            for entry in unused
        )
    )


def without_column(
    entries: Iterable[CellEntry], filled: Sequence[FilledSlots], tables: Mapping[str, TableConfig]
) -> tuple[str, ...]:
    """Return a note that lists the measured tasks and lengths without a column in any table.

    Only cells whose row is in a table are considered. Other metrics of a shown task are not listed,
    since an evaluation writes more metrics than a table shows. The result is empty if there is
    nothing to list.
    """
    shown = {
        (cell.cell.task, cell.cell.context_tokens)
        for slots in filled
        for slot in slots.values()
        for cell in slot.cells
    }
    in_rows = [e for e in entries if any(_row_for(e, t) is not None for t in tables.values())]
    measured = dict.fromkeys((e.cell.task, e.cell.context_tokens) for e in in_rows)
    names = [
        task if length is None else f"{task} at {length}"
        for task, length in measured
        if (task, length) not in shown
    ]
    if not names or not shown:
        return ()
    return (f"no column in {', '.join(tables)}: {', '.join(names)}",)


def _key(entry: CellEntry) -> tuple[Path, str, str]:
    return (entry.artifact or entry.path, entry.model, entry.method)


def _why_unused(entry: CellEntry, tables: Mapping[str, TableConfig]) -> str:
    where = ", ".join(tables)
    models = sorted({model for table in tables.values() for model in table.models})
    rows = sorted({row for table in tables.values() for row in _labels(table)})
    for kind, name, known in (("model", entry.model, models), ("method", entry.method, rows)):
        if name not in known:
            return f"not used, no {kind} {typed_path(name)!r} in {where}. {nearest(name, known)}"
    return f"not used, no column in {where} for its task, length, metric and scorer"


def _labels(table: TableConfig) -> set[str]:
    """Return every label, METHOD or METHOD@SFT, that refers to a row of a table."""
    names = [row.name for row in rows_of(table)]
    return {*names, *(full_name(name, table.sft) for name in names)}


def _row_for(entry: CellEntry, table: TableConfig) -> str | None:
    """Return the name of the row that a cell belongs to; None if the table has no such row."""
    labelled = row_of(entry.method, table.sft)
    if entry.model not in table.models:
        return None
    rows = rows_of(table)
    return next(
        (row.name for row in rows if (row.method, row.sft) == (labelled.method, labelled.sft)), None
    )


def _slot_cells(cells: tuple[CellEntry, ...]) -> SlotCells:
    seeds = [entry.seed for entry in cells]
    if None in seeds and len(seeds) > 1:
        paths = "\n  ".join(str(entry.path) for entry in cells)
        raise UserError(
            f"one slot of the table has cells with and without a seed:\n  {paths}",
            hint="Name the seed of every folder, or of none: --cells MODEL/METHOD/SEED=DIR.",
        )
    by_seed = [answers_of(entry) for entry in cells]
    answers = {key: value for seed_answers in by_seed for key, value in seed_answers.items()}
    return SlotCells(cells, answers if all(by_seed) else {})


def _matches(entry: CellEntry, column: Column) -> bool:
    cell = entry.cell
    return (
        column.scorer in (None, cell.settings.get("scorer"))
        and column.task == cell.task
        and column.metric == cell.metric
        and column.context_tokens == cell.context_tokens
    )


def _merge_entries(known: CellEntry | None, new: CellEntry) -> CellEntry:
    if known is None or known.cell == new.cell:
        return new if known is None else known
    if known.cell.value is None or new.cell.value is None:
        return new if known.cell.value is None else known
    where = f"{new.model}, {new.method}, {new.cell.task} {new.cell.metric}"
    if new.cell.context_tokens is not None:
        where += f" at {new.cell.context_tokens}"
    raise UserError(
        f"two cells for one slot of the table ({where}):\n  {known.path}\n  {new.path}",
        hint="Pass only one of them, or label them by seed: --cells MODEL/METHOD/SEED=DIR.",
    )


def engine_notes(slots: FilledSlots) -> tuple[str, ...]:
    """Return a note on the inference engines that generated the answers of a table.

    If there are several, the note lists the models, or the rows and columns, of each. Sampled
    answers differ between engines, so a difference between their cells is not only one between
    models.
    """
    cells: defaultdict[str, list[TableSlot]] = defaultdict(list)
    for slot, slot_cells in slots.items():
        for engine in dict.fromkeys(_engine_of(entry) for entry in slot_cells.cells):
            if engine is not None:
                cells[engine].append(slot)
    if len(cells) <= 1:
        return tuple(f"Inference engine: {engine}" for engine in cells)
    whole = {
        model: [engine for engine, made in cells.items() if any(m == model for m, _, _ in made)]
        for model, _, _ in slots
    }
    lists = []
    for engine, made in cells.items():
        names = dict.fromkeys(
            model if len(whole[model]) == 1 else f"{model} {row} {column}"
            for model, row, column in made
        )
        lists.append(f"{engine} ({', '.join(names)})")
    return (
        "Cells of this table were made by different inference engines, so compare them with care: "
        + "; ".join(lists),
    )


def _engine_of(entry: CellEntry) -> str | None:
    settings = entry.cell.settings
    if (name := settings.get("engine")) is None:
        return None
    return typed_path(f"{name} {settings.get(name, '')}".strip())


def differing_settings(slots: FilledSlots) -> tuple[str, ...]:
    """Return a note on each setting that differs between a model's rows in the same column."""
    values: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    for (model, _, column), slot in slots.items():
        for entry in slot.cells:
            for name, value in entry.cell.settings.items():
                values[model, column, name].add(typed_path(value))
    differing: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (model, column, name), seen in values.items():
        if len(seen) > 1:
            differing[model, name, " and ".join(sorted(seen))].append(column)
    return tuple(
        f"{model}: {name} differs between rows of {', '.join(columns)}: {seen}"
        for (model, name, seen), columns in differing.items()
    )
