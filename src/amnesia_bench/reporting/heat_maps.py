"""Recall by depth and length of every row of a table, from the records of single answers."""

from __future__ import annotations

from dataclasses import replace

from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.records.recall import heat_map
from amnesia_bench.records.report import TaskHeatMap
from amnesia_bench.reporting.answers import recall_samples_of
from amnesia_bench.reporting.layout import table_columns
from amnesia_bench.reporting.table_slots import FilledSlots


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
