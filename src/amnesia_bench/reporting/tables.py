"""Build tables in the paper's layout, with the paper's values and paired tests against SFT rows."""

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
from amnesia_bench.reporting.pooling import SlotCells, by_prompt, common_answers, seed_means
from amnesia_bench.reporting.published import published_value, remarks_on
from amnesia_bench.reporting.table_layout import after_sft, column_key, table_columns
from amnesia_bench.reporting.table_slots import FilledSlots, TableSlot
from amnesia_bench.statistics.over_seeds import sign_flip_over_seeds
from amnesia_bench.statistics.paired_tests import paired_permutation_p_value


def build_table(name: str, config: TableConfig, slots: FilledSlots) -> ReportTable:
    """Build a table with a cell for every slot, whether it was measured or not."""
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
    """Return a trade-off curve for each model with both recall and score in at least two rows."""
    if (trade_off := config.trade_off) is None:
        return ()
    columns = {column.key: column for column in table_columns(config)}
    recall = columns[column_key(trade_off.recall, config)]
    score = columns[column_key(trade_off.score, config)]
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
        measured = tuple(p for p in points if None not in (p.recall.value, p.score.value))
        if len(measured) > 1:
            lines = trade_off.lines
            curves.append(
                TradeOffCurve(model=model, recall=recall, score=score, points=measured, lines=lines)
            )
    return tuple(curves)


def paired_test(first: SlotCells, second: SlotCells) -> PairedTest | None:
    """Compare two rows on the prompts that both answered.

    Return None if there are none, or if the numbers of answers per problem differ.
    """
    answers = common_answers((first, second))
    if not answers or first.repeats != second.repeats:
        return None
    differences = {key: ours - theirs for key, (ours, theirs) in answers.items()}
    seeds = seed_means(differences)
    by_prompts = by_prompt(differences)
    if len(seeds) > 1:
        difference = sum(seeds.values()) / len(seeds)
        p_value = sign_flip_over_seeds(list(seeds.values()))
    else:
        sums = [sum(values) for values in by_prompts.values()]
        difference = sum(sums) / len(answers)
        p_value = paired_permutation_p_value(sums, [0.0] * len(sums))[0]
    return PairedTest(
        difference=difference,
        p_value=p_value,
        n=len(answers),
        prompts=len(by_prompts),
        seeds=max(1, len(seeds)),
    )


def _cell(slot: TableSlot, config: TableConfig, slots: FilledSlots) -> ReportedCell:
    model, method, column = slot
    slot_cells = slots.get(slot)
    published = published_value(config.published, model, method, column)
    value = None if slot_cells is None else slot_cells.value
    other = after_sft(method, config.sft)
    compared = None if other is None else slots.get((model, other, column))
    return ReportedCell(
        model=model,
        method=method,
        column=column,
        status=_status(slot_cells),
        reason=None if slot_cells is None else slot_cells.incomplete,
        value=value,
        interval=None if slot_cells is None else slot_cells.interval,
        n=0 if slot_cells is None else slot_cells.n,
        prompts=0 if slot_cells is None else slot_cells.prompts,
        repeats=1 if slot_cells is None else slot_cells.repeats,
        by_seed={} if slot_cells is None else slot_cells.by_seed,
        theirs=published,
        difference=None if value is None or published is None else value - published,
        against_post=paired_test(slot_cells, compared) if slot_cells and compared else None,
        origins=() if slot_cells is None else tuple(entry.origin for entry in slot_cells.cells),
    )


def _status(slot_cells: SlotCells | None) -> CellStatus:
    if slot_cells is None:
        return CellStatus.MISSING
    return CellStatus.DONE if slot_cells.incomplete is None else CellStatus.INCOMPLETE


def heat_maps_of(table: TableConfig, slots: FilledSlots) -> tuple[TaskHeatMap, ...]:
    """Return a heat map for each model, task and row for which judged answers are available."""
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
                for entry in slots[model, method, column.key].cells
                if entry.cell.context_tokens is not None
                for sample in recall_samples_of(entry)
            ]
            if samples:
                maps.append(TaskHeatMap(model=model, task=task, map=heat_map(samples, method)))
    return tuple(sorted(maps, key=lambda task_map: table.models.index(task_map.model)))
