"""The rows of a table, and which of them a label means.

A row is a method after a fine-tune: `restored@tulu3`. Of the table's own fine-tune, `sft`, a row
is named by its method alone. `pre` comes before any fine-tune, and so belongs to all.
"""

from __future__ import annotations

from dataclasses import dataclass

from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.records.ids import AFTER_SFT, BEFORE_SFT


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row: its name in the table's config, and what that means."""

    name: str
    method: str
    sft: str | None


def row_of(name: str, sft: str) -> TableRow:
    """Return the row that a name means in a table of the fine-tune `sft`."""
    method, _, own = name.partition("@")
    return TableRow(name=name, method=method, sft=None if method == BEFORE_SFT else own or sft)


def full_name(name: str, sft: str) -> str:
    """Return METHOD@SFT of any row, METHOD of that before all."""
    row = row_of(name, sft)
    return row.method if row.sft is None else f"{row.method}@{row.sft}"


def rows_of(table: TableConfig) -> tuple[TableRow, ...]:
    """Return the rows that are shown, then those that only claims and figures need."""
    needed = [name for claim in table.claims.values() for name in claim.weights]
    names = dict.fromkeys([*table.methods, *needed, *table.points])
    return tuple(row_of(name, table.sft) for name in names)


def after_sft(name: str, sft: str) -> str | None:
    """Return the row after the same fine-tune, which a row is compared with; None for itself."""
    row = row_of(name, sft)
    if row.method == AFTER_SFT:
        return None
    return AFTER_SFT if row.sft in (None, sft) else f"{AFTER_SFT}@{row.sft}"
