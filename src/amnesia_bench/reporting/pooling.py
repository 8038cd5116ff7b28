"""What the cells of one slot of a table, one per seed, say together.

Answers to one prompt belong together, whichever seeds gave them: errors are over prompts. They
speak of these trainings; each seed's own value stands beside, for a reader to see how trainings
differ.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from amnesia_bench.records.evaluation import Cell, Interval
from amnesia_bench.reporting.answers import AnswerKey, Answers, prompts_identity
from amnesia_bench.reporting.sources import FoundCell
from amnesia_bench.statistics import clustered_mean, wilson

_Z = 1.959963984540054  # of a two-sided 95 %
_LEVEL = 0.95
Values = tuple[float, ...]


@dataclass(frozen=True)
class SlotCells:
    """The cells of one slot of a table, one per seed.

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
    def prompts(self) -> int:
        """Prompts or problems that differ: those which seeds share count once."""
        return sum(max(cell.n for cell in cells) for cells in self._by_prompts())

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
        """The standard error of `value`, over prompts or problems."""
        if len(self.cells) == 1:
            return self.cells[0].cell.stderr
        if self.incomplete is not None or any(found.cell.stderr is None for found in self.cells):
            return None
        if self.answers and self.prompts > 1:
            return math.sqrt(clustered_mean(list(by_prompt(self.answers).values()))[1])
        # Without the answers, seeds that share prompts count as one: the most it can be.
        errors = (
            sum((cell.stderr or 0.0) * cell.n for cell in cells) for cells in self._by_prompts()
        )
        return math.sqrt(sum(error**2 for error in errors)) / self.n

    @property
    def interval(self) -> Interval | None:
        """The cell's own; of several seeds Wilson's where answers are right or wrong."""
        if len(self.cells) == 1:
            return self.cells[0].cell.interval
        value, stderr = self.value, self.stderr
        if value is None or stderr is None:
            return None
        methods = {found.cell.interval.method for found in self.cells if found.cell.interval}
        if methods == {"wilson"}:
            n = self._effective_n(value, stderr)
            return wilson(value * n, n, _LEVEL)
        low, high = max(0.0, value - _Z * stderr), min(1.0, value + _Z * stderr)
        return Interval(low=low, high=high, level=_LEVEL, method="normal")

    def _effective_n(self, value: float, stderr: float) -> float:
        """Return how many independent prompts would say as much (Korn and Graubard 1998)."""
        if self.prompts == self.n:
            return self.n
        spread = value * (1 - value)
        if spread < 1e-12:  # all right or all wrong: nothing tells how much seeds share
            return self.prompts
        return min(float(self.n), spread / stderr**2) if stderr else self.n

    def _by_prompts(self) -> Iterable[Sequence[Cell]]:
        """Yield cells that answered the same prompts; unknown prompts are no one else's."""
        groups: defaultdict[str, list[Cell]] = defaultdict(list)
        for i, found in enumerate(self.cells):
            groups[prompts_identity(found.cell) or f"unknown {i}"].append(found.cell)
        return groups.values()

    def spread_over(self, seeds: Collection[str | None]) -> Answers:
        """Return the answers; those of a row without seeds stand beside every seed's."""
        if any(found.seed is not None for found in self.cells):
            return self.answers
        return {
            (seed, identity, doc): value
            for (_, identity, doc), value in self.answers.items()
            for seed in seeds
        }


def in_common(rows: Sequence[SlotCells]) -> dict[AnswerKey, Values]:
    """Return, per prompt and seed that all rows answered, the value of each row."""
    seeds = {found.seed for row in rows for found in row.cells}
    spread = [row.spread_over(seeds - {None} or seeds) for row in rows]
    common = set.intersection(*(set(answers) for answers in spread))
    return {key: tuple(each[key] for each in spread) for key in sorted(common, key=str)}


def by_prompt(values: Mapping[AnswerKey, float]) -> dict[tuple[str, int], list[float]]:
    """Put the values of one prompt together, whichever seeds they are of."""
    prompts: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for (_, identity, doc), value in values.items():
        prompts[identity, doc].append(value)
    return dict(prompts)


def seed_means(values: Mapping[AnswerKey, float]) -> dict[str, float]:
    """Return the mean of each seed that has a name."""
    seeds: defaultdict[str, list[float]] = defaultdict(list)
    for (seed, _, _), value in values.items():
        if seed is not None:
            seeds[seed].append(value)
    return {seed: sum(each) / len(each) for seed, each in seeds.items()}
