"""A table in the paper's layout: ours next to theirs, and each row against that after SFT."""

from __future__ import annotations

from dataclasses import replace

from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.records.recall import heat_map
from amnesia_bench.records.report import (
    CellStatus,
    PairedTest,
    ReportedCell,
    ReportTable,
    TaskHeatMap,
    TradeOffCurve,
    TradeOffPoint,
)
from amnesia_bench.reporting.answers import recall_samples_of
from amnesia_bench.reporting.pooling import SlotCells, by_prompt, in_common
from amnesia_bench.reporting.published import published_value, remarks_on
from amnesia_bench.reporting.table_layout import after_sft, resolved, table_columns
from amnesia_bench.reporting.table_slots import FilledSlots, TableSlot
from amnesia_bench.statistics import sign_flip_p_value


def build_table(name: str, config: TableConfig, slots: FilledSlots) -> ReportTable:
    """Lay out a table; every slot is there, whether it was measured or not."""
    columns = table_columns(config)
    cells = tuple(
        _cell((model, method, column.key), config, slots)
        for model in config.models
        for method in config.methods
        for column in columns
    )
    return ReportTable(
        name=name,
        title=config.title,
        sft=config.sft,
        models=config.models,
        methods=config.methods,
        columns=columns,
        cells=cells,
        remarks=remarks_on(config.published[0]) if config.published else (),
    )


def build_trade_offs(config: TableConfig, slots: FilledSlots) -> tuple[TradeOffCurve, ...]:
    """Return recall against reasoning of each model that has both in two rows or more."""
    if (asked := config.trade_off) is None:
        return ()
    columns = {column.key: column for column in table_columns(config)}
    recall, score = (columns[resolved(name, config)] for name in (asked.recall, asked.score))
    curves = []
    for model in config.models:
        points = [
            TradeOffPoint(
                row=row,
                label=label,
                recall=_cell((model, row, recall.key), config, slots),
                score=_cell((model, row, score.key), config, slots),
            )
            for row, label in config.points.items()
        ]
        there = tuple(p for p in points if None not in (p.recall.value, p.score.value))
        if len(there) > 1:
            curves.append(
                TradeOffCurve(
                    model=model, recall=recall, score=score, points=there, lines=asked.lines
                )
            )
    return tuple(curves)


def paired_test(first: SlotCells, second: SlotCells) -> PairedTest | None:
    """Compare two rows on the answers that both gave; None where there are none in common."""
    answers = in_common((first, second))
    if not answers or first.repeats != second.repeats:
        return None
    # Seeds may share a prompt: what is flipped is a prompt with all its answers.
    ours, theirs = (
        [sum(values) for values in by_prompt({key: v[i] for key, v in answers.items()}).values()]
        for i in (0, 1)
    )
    return PairedTest(
        difference=(sum(ours) - sum(theirs)) / len(answers),
        p_value=sign_flip_p_value(ours, theirs, first.repeats),
        n=len(answers),
        prompts=len(ours),
    )


def _cell(slot: TableSlot, config: TableConfig, slots: FilledSlots) -> ReportedCell:
    model, method, column = slot
    placed = slots.get(slot)
    theirs = published_value(config.published, model, method, column)
    value = None if placed is None else placed.value
    other = after_sft(method, config.sft)
    compared = None if other is None else slots.get((model, other, column))
    return ReportedCell(
        model=model,
        method=method,
        column=column,
        status=_status(placed),
        reason=None if placed is None else placed.incomplete,
        value=value,
        interval=None if placed is None else placed.interval,
        n=0 if placed is None else placed.n,
        prompts=0 if placed is None else placed.prompts,
        repeats=1 if placed is None else placed.repeats,
        by_seed={} if placed is None else placed.by_seed,
        theirs=theirs,
        difference=None if value is None or theirs is None else value - theirs,
        against_post=paired_test(placed, compared) if placed and compared else None,
        origins=() if placed is None else tuple(found.origin for found in placed.cells),
    )


def _status(placed: SlotCells | None) -> CellStatus:
    if placed is None:
        return CellStatus.MISSING
    return CellStatus.DONE if placed.incomplete is None else CellStatus.INCOMPLETE


def heat_maps_of(table: TableConfig, slots: FilledSlots) -> tuple[TaskHeatMap, ...]:
    """Return a map per model, task and row shown; those without kept answers are left out."""
    columns = table_columns(table)
    tasks = dict.fromkeys(column.task for column in columns if column.context_tokens is not None)
    rows = [(model, method) for model in table.models for method in table.methods]
    maps = []
    for task in tasks:
        for model, method in rows:
            samples = [
                replace(sample, role=method)
                for column in columns
                if column.task == task and (model, method, column.key) in slots
                for found in slots[model, method, column.key].cells
                if found.cell.context_tokens is not None
                for sample in recall_samples_of(found)
            ]
            if samples:
                maps.append(TaskHeatMap(model=model, task=task, map=heat_map(samples, method)))
    return tuple(sorted(maps, key=lambda each: table.models.index(each.model)))
