"""Which cell belongs where in a table, and what the cells of one place say together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from amnesia_bench.config.messages import nearest
from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.errors import UserError
from amnesia_bench.records.evaluation import Interval
from amnesia_bench.records.report import Column
from amnesia_bench.report.answers import Answers, answers_of
from amnesia_bench.report.sources import FoundCell
from amnesia_bench.statistics import wilson

_Z = 1.959963984540054  # of a two-sided 95 %
_LEVEL = 0.95

# Model, method, key of the column.
Place = tuple[str, str, str]


@dataclass(frozen=True)
class Placed:
    """The cells of one place, one per seed.

    `answers` are the single answers behind them; empty unless those of every seed are known.
    """

    cells: tuple[FoundCell, ...]
    answers: Answers

    @property
    def incomplete(self) -> str | None:
        """Why there is no value; None when there is."""
        reasons = [found.cell.incomplete for found in self.cells if found.cell.incomplete]
        return "; ".join(dict.fromkeys(reasons)) or None

    @property
    def n(self) -> int:
        """Prompts or problems, all seeds together."""
        return sum(found.cell.n for found in self.cells)

    @property
    def repeats(self) -> int:
        return self.cells[0].cell.repeats

    @property
    def by_seed(self) -> dict[str, float]:
        """The value of each seed that has one and a name."""
        return {
            found.seed: found.cell.value
            for found in self.cells
            if found.seed is not None and found.cell.value is not None
        }

    @property
    def value(self) -> float | None:
        """The mean of the seeds, weighted by n."""
        if self.incomplete is not None:
            return None
        return sum((found.cell.value or 0.0) * found.cell.n for found in self.cells) / self.n

    @property
    def stderr(self) -> float | None:
        """The standard error of `value`; over prompts or problems, not over trainings."""
        errors = [found.cell.stderr for found in self.cells]
        if self.incomplete is not None or None in errors:
            return None
        squares = ((e or 0.0) * f.cell.n for e, f in zip(errors, self.cells, strict=True))
        return math.sqrt(sum(square**2 for square in squares)) / self.n

    @property
    def interval(self) -> Interval | None:
        """The cell's own; of several seeds Wilson's where answers are right or wrong."""
        if len(self.cells) == 1:
            return self.cells[0].cell.interval
        value, stderr = self.value, self.stderr
        if value is None:
            return None
        methods = {found.cell.interval.method for found in self.cells if found.cell.interval}
        if methods == {"wilson"}:
            return wilson(round(value * self.n), self.n, _LEVEL)
        if stderr is None:
            return None
        low, high = value - _Z * stderr, value + _Z * stderr
        return Interval(low=low, high=high, level=_LEVEL, method="normal")


def place_cells(
    found: Iterable[FoundCell], table: TableConfig, columns: Sequence[Column]
) -> tuple[dict[Place, Placed], tuple[str, ...]]:
    """Sort cells into a table, and say which models and methods it does not know.

    Cells of the table's rows in columns it does not have are left out: an evaluation writes more
    metrics than a table shows.

    Raises:
        UserError: two different cells for one place, or answers that are not the cell's.
    """
    methods = {*table.methods, *(name for claim in table.claims for name in claim.weights)}
    places: defaultdict[Place, dict[str | None, FoundCell]] = defaultdict(dict)
    notes: dict[str, None] = {}
    for each in found:
        for kind, name, known in (
            ("model", each.model, table.models),
            ("method", each.method, sorted(methods)),
        ):
            if name not in known:
                hint = nearest(name, known)
                notes[f"{each.path}: no {kind} {name!r} in this table, left out. {hint}"] = None
        if each.model not in table.models or each.method not in methods:
            continue
        for column in columns:
            if _belongs(each, column):
                seeds = places[each.model, each.method, column.key]
                seeds[each.seed] = _one_of(seeds.get(each.seed), each)
    ordered = {
        place: _placed(tuple(places[place].values()))
        for model in table.models
        for method in (*table.methods, *sorted(methods - set(table.methods)))
        for column in columns
        if (place := (model, method, column.key)) in places
    }
    return ordered, tuple(notes)


def _placed(cells: tuple[FoundCell, ...]) -> Placed:
    known = [answers_of(found) for found in cells]
    answers = {key: value for each in known for key, value in each.items()}
    return Placed(cells, answers if all(known) else {})


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


def differing_settings(places: Mapping[Place, Placed]) -> tuple[str, ...]:
    """Say where the rows of one model were measured with different settings in one column."""
    values: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    for (model, _, column), placed in places.items():
        for found in placed.cells:
            for name, value in found.cell.settings.items():
                values[model, column, name].add(value)
    differing: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (model, column, name), seen in values.items():
        if len(seen) > 1:
            differing[model, name, " and ".join(sorted(seen))].append(column)
    return tuple(
        f"{model}: {name} is {seen} in different rows of {', '.join(columns)}"
        for (model, name, seen), columns in differing.items()
    )
