"""Pool the cells that belong to one slot of a table, one cell per seed.

The seed is the sampling unit: intervals come from a bootstrap over seeds and, within them, prompts
(`statistics.over_seeds`). Such an interval is never narrower than the interval over prompts, in
which the answers to one prompt from all seeds form a cluster: a few seeds may agree by luck, and
seeds that answer everything correctly have no spread at all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from amnesia_bench.records.evaluation import Cell, Interval
from amnesia_bench.reporting.answers import AnswerKey, Answers, prompts_identity
from amnesia_bench.reporting.sources import CellEntry
from amnesia_bench.statistics.intervals import clustered_mean, wilson
from amnesia_bench.statistics.over_seeds import (
    BOOTSTRAP_METHOD,
    bootstrap_means,
    widened,
)
from amnesia_bench.statistics.resampling import percentile_interval

_Z = 1.959963984540054  # two-sided 95 %
_LEVEL = 0.95
Values = tuple[float, ...]


@dataclass(frozen=True)
class SlotCells:
    """The cells of one slot of a table, one per seed.

    `answers` maps every seed and prompt to its value. It is empty unless the answers of all seeds
    are known.
    """

    cells: tuple[CellEntry, ...]
    answers: Answers

    @property
    def incomplete(self) -> str | None:
        """The reasons why cells have no value; None if all cells are complete."""
        reasons = [entry.cell.incomplete for entry in self.cells if entry.cell.incomplete]
        return "; ".join(dict.fromkeys(reasons)) or None

    @property
    def n(self) -> int:
        """The number of prompts or problems, summed over the seeds."""
        return sum(entry.cell.n for entry in self.cells)

    @property
    def prompts(self) -> int:
        """The number of distinct prompts or problems; one that several seeds share counts once."""
        return sum(max(cell.n for cell in cells) for cells in self._by_prompts())

    @property
    def repeats(self) -> int:
        return self.cells[0].cell.repeats

    @property
    def by_seed(self) -> dict[str, float]:
        """The value of each named seed that has one."""
        return {
            entry.seed: entry.cell.value
            for entry in self.cells
            if entry.seed is not None and entry.cell.value is not None
        }

    @property
    def value(self) -> float | None:
        """The mean of the seeds' values."""
        if self.incomplete is not None:
            return None
        return sum(entry.cell.value or 0.0 for entry in self.cells) / len(self.cells)

    @property
    def stderr(self) -> float | None:
        """The standard error of `value`, with prompts or problems as the sampling unit."""
        if len(self.cells) == 1:
            return self.cells[0].cell.stderr
        if self.incomplete is not None or any(entry.cell.stderr is None for entry in self.cells):
            return None
        if self.answers and self.prompts > 1:
            return math.sqrt(clustered_mean(list(by_prompt(self.answers).values()))[1])
        # If the answers are unknown, treat seeds that share prompts as fully correlated, which
        # gives an upper bound.
        errors = (
            sum((cell.stderr or 0.0) * cell.n for cell in cells) for cells in self._by_prompts()
        )
        return math.sqrt(sum(error**2 for error in errors)) / self.n

    @property
    def interval(self) -> Interval | None:
        """The interval of `value`.

        For a single cell it is the cell's interval. For several seeds it is the bootstrap interval
        over seeds and prompts, widened to contain the interval over prompts.
        """
        if len(self.cells) == 1:
            return self.cells[0].cell.interval
        over_prompts = self._over_prompts()
        if over_prompts is None:
            return None
        # Where answers are unknown, each seed's value counts as a single one.
        answers = self.answers or {(seed, seed, 0): value for seed, value in self.by_seed.items()}
        draws = bootstrap_means(list(answers_by_seed(answers).values()))
        return widened(percentile_interval(draws, BOOTSTRAP_METHOD), over_prompts)

    def _over_prompts(self) -> Interval | None:
        """Return the interval over prompts: Wilson's if the cells have it, else the normal one."""
        value, stderr = self.value, self.stderr
        if value is None or stderr is None:
            return None
        methods = {entry.cell.interval.method for entry in self.cells if entry.cell.interval}
        if methods == {"wilson"}:
            n = self._effective_n(value, stderr)
            return wilson(value * n, n, _LEVEL)
        low, high = max(0.0, value - _Z * stderr), min(1.0, value + _Z * stderr)
        return Interval(low=low, high=high, level=_LEVEL, method="normal")

    def _effective_n(self, value: float, stderr: float) -> float:
        """Return the effective number of independent prompts (Korn and Graubard 1998)."""
        if self.prompts == self.n:
            return self.n
        spread = value * (1 - value)
        if spread < 1e-12:  # if all are correct or all wrong, the correlation of seeds is unknown
            return self.prompts
        return min(float(self.n), spread / stderr**2) if stderr else self.n

    def _by_prompts(self) -> Iterable[Sequence[Cell]]:
        """Group the cells by prompt set; a cell with an unknown prompt set is a separate group."""
        groups: defaultdict[str, list[Cell]] = defaultdict(list)
        for i, entry in enumerate(self.cells):
            groups[prompts_identity(entry.cell) or f"unknown {i}"].append(entry.cell)
        return groups.values()

    def repeated_for(self, seeds: Collection[str | None]) -> Answers:
        """Return the answers; if the cells have no seed, repeat the answers for each of `seeds`."""
        if any(entry.seed is not None for entry in self.cells):
            return self.answers
        return {
            (seed, identity, doc): value
            for (_, identity, doc), value in self.answers.items()
            for seed in seeds
        }


def common_answers(rows: Sequence[SlotCells]) -> dict[AnswerKey, Values]:
    """Return the values of all rows for every seed and prompt for which all rows have answers."""
    seeds = {entry.seed for row in rows for entry in row.cells}
    spread = [row.repeated_for(seeds - {None} or seeds) for row in rows]
    common = set.intersection(*(set(answers) for answers in spread))
    return {key: tuple(answers[key] for answers in spread) for key in sorted(common, key=str)}


def by_prompt(values: Mapping[AnswerKey, float]) -> dict[tuple[str, int], list[float]]:
    """Return, for each prompt, its values from all seeds."""
    prompts: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for (_, identity, doc), value in values.items():
        prompts[identity, doc].append(value)
    return dict(prompts)


def answers_by_seed(values: Mapping[AnswerKey, float]) -> dict[str, dict[tuple[str, int], float]]:
    """Return the values of each named seed by prompt, in the order of the seeds' names."""
    seeds: defaultdict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for (seed, identity, doc), value in values.items():
        if seed is not None:
            seeds[seed][identity, doc] = value
    return dict(sorted(seeds.items()))


def seed_means(values: Mapping[AnswerKey, float]) -> dict[str, float]:
    """Return the mean value of each named seed."""
    return {seed: sum(own.values()) / len(own) for seed, own in answers_by_seed(values).items()}
