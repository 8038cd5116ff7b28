"""The paper's numbers (every cell of Tables 1-4 and 10, as printed) and remarks on them.

`published/<table>.csv` has one row per model and method and the columns of configs/report; values
are in per cent. `tests/unit/reporting/test_published.py` compares them with the paper's text.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from amnesia_bench.config.messages import nearest
from amnesia_bench.errors import UserError

_FOLDER = Path(__file__).parent / "published"


def published_tables() -> tuple[str, ...]:
    """Return the names of the tables whose published numbers are included."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.csv")))


def published_value(tables: Sequence[str], model: str, method: str, column: str) -> float | None:
    """Return the paper's number as a fraction; None if none of `tables` contains it.

    The first table that contains the number is used.

    Raises:
        UserError: one of `tables` does not exist.
    """
    for table in tables:
        if table not in published_tables():
            raise UserError(
                f"published={table}: no such table", hint=nearest(table, published_tables())
            )
        value = read_published(table).get((model, method, column))
        if value is not None:
            return value
    return None


@cache
def read_published(table: str) -> dict[tuple[str, str, str], float]:
    """Return the published numbers of a table as fractions, by model, method and column."""
    with (_FOLDER / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        heads, *rows = csv.reader(file)
    return {
        (row[0], row[1], column): float(printed) / 100
        for row in rows
        for column, printed in zip(heads[2:], row[2:], strict=True)
    }


def remarks_on(table: str) -> tuple[str, ...]:
    """Return the remarks on a table of the paper."""
    remarks = json.loads((_FOLDER / "remarks.json").read_text(encoding="utf-8"))
    return tuple(remark["text"] for remark in remarks if remark["table"] == table)
