"""The race of candidates: successive halving on paired questions, within a budget of answers.

All candidates answer the same questions in the same order, in rounds that end at the looks of the
sequential test (`recall.sequential`). There are two ways to leave a race:

- **Dropped**: the sequential test says that the candidate is worse than post or than QK-Restore on
  one objective, and it is not ahead of the same one on the other. The error rate is that of the
  gate, shared evenly by the tests of one candidate: two objectives against two known points. The
  tests compare with the known points only. The best candidate so far was chosen by its answers to
  the same questions, so a test against it would drop equally good ones too often.
- **Paused**: after each round, the half that adds least to the hypervolume of what is known goes
  no further. This is a use of the budget, not a verdict. A paused candidate can be continued later.

A race takes at most half of the remaining budget, so later races can build on earlier results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from amnesia_bench.errors import UserError
from amnesia_bench.recall.paired_scores import PairedScores
from amnesia_bench.recall.sequential import judge, looks
from amnesia_bench.records.recall import CheckVerdict, Rule
from amnesia_bench.records.tuning import Fate
from amnesia_bench.tuning.pareto import Point, front_of, hypervolume
from amnesia_bench.tuning.space import POST, Mix


class Objective(StrEnum):
    """What is measured on its own questions: needle prompts, and problems of a benchmark."""

    RECALL = "recall"
    REASONING = "reasoning"


class Evaluator(Protocol):
    """Has candidates answer questions, which are numbered in a fixed order per objective."""

    def answers(self, mix: Mix, objective: Objective, start: int, stop: int) -> tuple[bool, ...]:
        """Return whether the mix answers each of the questions from `start` to `stop` correctly."""
        ...


# Returns up to `count` mixes that were not tried yet, given the front of the finished ones.
Proposer = Callable[[Sequence[Mix], int], Sequence[Mix]]


@dataclass(eq=False)
class Entry:
    """A candidate of the race: its answers so far, in the order of the questions."""

    mix: Mix
    label: str
    fate: Fate = Fate.PAUSED
    correct: dict[Objective, list[bool]] = field(
        default_factory=lambda: {objective: [] for objective in Objective}
    )

    def share(self, objective: Objective, count: int | None = None) -> float:
        """Return the share of correct answers, among the first `count` questions or all so far."""
        answered = self.correct[objective][:count]
        return sum(answered) / len(answered)

    def point(self, counts: tuple[int, int] | None = None) -> Point:
        """Return recall and reasoning, among the first `counts` questions or all so far."""
        recall, reasoning = counts or (None, None)
        return self.share(Objective.RECALL, recall), self.share(Objective.REASONING, reasoning)


@dataclass(frozen=True, kw_only=True)
class RaceRules:
    """The sizes and rules of a race.

    `prompts` and `problems` are the numbers of questions of a full evaluation. The `budget` is a
    number of full evaluations; it pays for every answer, also of the known points.
    """

    prompts: int
    problems: int
    budget: float
    error_rate: float

    @property
    def full(self) -> int:
        """The number of answers of a full evaluation."""
        return self.prompts + self.problems

    def check_budget(self) -> None:
        """Raise UserError unless the budget pays for post, QK-Restore and one candidate."""
        if self.budget < 3:
            raise UserError(
                f"--budget {self.budget:g}: too small for one comparison: post, QK-Restore and one "
                f"candidate need 3 full evaluations of {self.full} answers each",
                hint="--budget 24",
            )

    @property
    def rounds(self) -> tuple[tuple[int, int], ...]:
        """The number of prompts and of problems that a candidate has answered after each round."""
        own = [looks(self.prompts), looks(self.problems)]
        length = max(map(len, own))
        padded = [(*each, *[each[-1]] * (length - len(each))) for each in own]
        return tuple(zip(*padded, strict=True))


class Race:
    """Spends a budget on candidates that a proposer names.

    Args:
        evaluator: answers questions.
        rules: sizes, budget and error rate.
        propose: names new candidates.
        progress: called with one line of text per event.

    Attributes:
        entries: all candidates, post and QK-Restore first.
        spent: the number of answers so far.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        rules: RaceRules,
        propose: Proposer,
        progress: Callable[[str], None],
    ) -> None:
        self.entries: list[Entry] = []
        self.spent = 0
        self._evaluator, self._rules, self._propose = evaluator, rules, propose
        self._progress = progress

    @property
    def left(self) -> int:
        """The number of answers that the budget still pays for."""
        return math.floor(self._rules.budget * self._rules.full) - self.spent

    @property
    def finished(self) -> list[Entry]:
        """The candidates that answered all questions."""
        return [entry for entry in self.entries if entry.fate is Fate.FINISHED]

    def run(self, qk_restore: Mix) -> None:
        """Evaluate the known points, then race proposals until the budget is spent."""
        for mix, label in ((POST, "post"), (qk_restore, "QK-Restore")):
            entry = Entry(mix, label)
            self.entries.append(entry)
            self._answer(entry, self._rules.rounds[-1])
            self._finish(entry)
        while self.left >= self._rules.full:
            size = self._race_size(max(self.left // 2, self._rules.full))
            front = [self.finished[i].mix for i in front_of([e.point() for e in self.finished])]
            proposed = self._propose(front, size)
            if not proposed:
                break
            self._race([self._entered(mix) for mix in proposed])
        self._continue_paused()

    def _entered(self, mix: Mix) -> Entry:
        entry = Entry(mix, f"c{len(self.entries) - 1}")
        self.entries.append(entry)
        return entry

    def _race_size(self, allotted: int) -> int:
        """Return how many candidates a race can have at most, if none is dropped."""
        size = 1
        while self._race_cost(size + 1) <= allotted:
            size += 1
        return size

    def _race_cost(self, size: int) -> int:
        cost, before = 0, 0
        for counts in self._rules.rounds:
            cost += size * (sum(counts) - before)
            before = sum(counts)
            size = math.ceil(size / 2)
        return cost

    def _race(self, racing: list[Entry]) -> None:
        names = f"{racing[0].label} to {racing[-1].label}" if len(racing) > 1 else racing[0].label
        self._progress(f"racing {names}; the budget pays for {self.left} more answers")
        for counts in self._rules.rounds:
            kept = math.ceil(len(racing) / 2)
            for entry in racing:
                self._answer(entry, counts)
            racing = [entry for entry in racing if not self._is_dropped(entry)]
            if counts == self._rules.rounds[-1]:
                for entry in racing:
                    self._finish(entry)
                return
            racing = self._ranked(racing, counts)[:kept]

    def _ranked(self, entries: Sequence[Entry], counts: tuple[int, int]) -> list[Entry]:
        """Sort by what each adds to the hypervolume of the finished ones; ties keep their order."""
        known = [entry.point(counts) for entry in self.finished]
        area = hypervolume(known)
        points = {entry: entry.point(counts) for entry in entries}
        return sorted(
            entries,
            key=lambda entry: (area - hypervolume([*known, points[entry]]), -sum(points[entry])),
        )

    def _continue_paused(self) -> None:
        """Spend what is left on paused candidates, those that got furthest and add most first."""
        paused = [entry for entry in self.entries if entry.fate is Fate.PAUSED]
        ranked = self._ranked(paused, self._rules.rounds[0])
        for entry in sorted(ranked, key=self._missing):
            if self._missing(entry) <= self.left:
                self._race([entry])

    def _missing(self, entry: Entry) -> int:
        return self._rules.full - sum(map(len, entry.correct.values()))

    def _answer(self, entry: Entry, counts: tuple[int, int]) -> None:
        for objective, stop in zip(Objective, counts, strict=True):
            answered = entry.correct[objective]
            if len(answered) < stop:
                new = self._evaluator.answers(entry.mix, objective, len(answered), stop)
                answered += new
                self.spent += len(new)

    def _finish(self, entry: Entry) -> None:
        entry.fate = Fate.FINISHED
        recall, reasoning = entry.point()
        self._progress(
            f"{entry.label} ({entry.mix.described()}): recall {100 * recall:.1f} %, "
            f"reasoning {100 * reasoning:.1f} %"
        )

    def _is_dropped(self, entry: Entry) -> bool:
        for known in self.entries[:2]:
            for objective in Objective:
                if self._is_worse(entry, known, objective) and not _is_ahead(
                    entry, known, objective
                ):
                    entry.fate = Fate.DROPPED
                    self._progress(
                        f"{entry.label} ({entry.mix.described()}) is dropped: its "
                        f"{objective.value} is below that of {known.label}"
                    )
                    return True
        return False

    def _is_worse(self, entry: Entry, known: Entry, objective: Objective) -> bool:
        """Return whether the sequential test finds the candidate worse than a known point."""
        answered, theirs = entry.correct[objective], known.correct[objective]
        samples = len(theirs)
        history = [
            PairedScores.of(theirs[:look], answered[:look])
            for look in looks(samples)
            if look <= len(answered)
        ]
        rule = Rule(samples=samples, margin=0.0, error_rate=self._rules.error_rate)
        return judge(history, rule, 2 * len(Objective)) is CheckVerdict.REGRESSION


def _is_ahead(entry: Entry, known: Entry, objective: Objective) -> bool:
    """Return whether the candidate has more correct answers in the other objective."""
    other = next(each for each in Objective if each is not objective)
    answered = entry.correct[other]
    return sum(answered) > sum(known.correct[other][: len(answered)])


def proposals(
    planned: Iterator[Mix], offspring: Callable[[Sequence[Mix]], Mix], known: set[Mix]
) -> Proposer:
    """Return a proposer that names planned mixes first, and from the second race on also offspring.

    Args:
        planned: mixes in the order in which they are tried.
        offspring: returns a random change of one of the given mixes.
        known: the mixes that need not be proposed; grows with each proposal.
    """
    races = 0

    def propose(front: Sequence[Mix], count: int) -> list[Mix]:
        nonlocal races
        races += 1
        chosen: list[Mix] = []
        wanted = count if races == 1 else math.ceil(count / 2)
        for mix in planned:
            if mix not in known:
                known.add(mix)
                chosen.append(mix)
            if len(chosen) >= wanted:
                break
        for _ in range(100 * count):  # a small space may hold no further mix
            if len(chosen) >= count:
                break
            mix = offspring(front)
            if mix not in known:
                known.add(mix)
                chosen.append(mix)
        return chosen

    return propose
