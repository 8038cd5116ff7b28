"""The end of a search: which candidate is chosen, what fresh questions say, and the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amnesia_bench.recall.paired_scores import PairedScores
from amnesia_bench.recall.sequential_check import paired_comparison
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.recall import Comparison
from amnesia_bench.records.tuning import (
    ConfirmedCandidate,
    Fate,
    PlaceShare,
    Screen,
    TunedCandidate,
    Tuning,
    TuningScore,
    TuningWork,
)
from amnesia_bench.statistics.intervals import wilson
from amnesia_bench.tuning.pareto import front_of, hypervolume
from amnesia_bench.tuning.racing import Entry, Evaluator, Objective, Race, RaceRules

_TOLERATED_LOSS = 0.01
RULE = (
    "the most recall among the finished candidates whose reasoning is at most 1 point below that "
    "of post; of equals the one with more reasoning, then the one that changes least"
)


def choose_candidate(finished: Sequence[Entry]) -> Entry:
    """Return the candidate that `RULE` chooses; the first of `finished` is post."""
    least = finished[0].share(Objective.REASONING) - _TOLERATED_LOSS - 1e-9
    allowed = [entry for entry in finished if entry.share(Objective.REASONING) >= least]
    return max(allowed, key=lambda entry: (*entry.point(), -entry.mix.rest, -entry.mix.change))


def confirm(entries: Sequence[Entry], evaluator: Evaluator, rules: RaceRules) -> tuple[Entry, ...]:
    """Have candidates answer all fresh questions.

    Args:
        entries: the candidates, which keep their answers of the search.
        evaluator: answers the fresh questions.
        rules: the numbers of fresh questions, which are those of the search.
    """
    confirmed = []
    for entry in entries:
        fresh = Entry(entry.mix, entry.label, Fate.FINISHED)
        for objective, size in zip(Objective, (rules.prompts, rules.problems), strict=True):
            fresh.correct[objective] += evaluator.answers(entry.mix, objective, 0, size)
        confirmed.append(fresh)
    return tuple(confirmed)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A finished race, the chosen candidate, and the answers to fresh questions.

    `confirmed` has post, QK-Restore and, if it is another one, the chosen candidate.
    """

    race: Race
    rules: RaceRules
    chosen: Entry
    confirmed: tuple[Entry, ...]
    screens: tuple[Screen, ...]


def tuning_record(
    result: SearchResult, parents: tuple[Parent, Parent], settings: Mapping[str, str]
) -> Tuning:
    """Return the record of a search.

    Args:
        result: the result of the search.
        parents: pre and post.
        settings: everything else on which the result depends.
    """
    race, rules = result.race, result.rules
    points = [entry.point() for entry in race.finished]
    front = {race.finished[i] for i in front_of(points)}
    return Tuning(
        pre=parents[0],
        post=parents[1],
        rule=RULE,
        chosen=result.chosen.label,
        candidates=tuple(_candidate(entry, entry in front) for entry in race.entries),
        confirmed=tuple(_confirmed(entry, result.confirmed) for entry in result.confirmed),
        screens=result.screens,
        hypervolume=hypervolume(points),
        work=TuningWork(
            budget=rules.budget,
            full=rules.full,
            answers=race.spent,
            confirmation=rules.full * len(result.confirmed),
        ),
        settings=settings,
    )


def _candidate(entry: Entry, in_front: bool) -> TunedCandidate:
    return TunedCandidate(
        label=entry.label,
        description=entry.mix.described(),
        shares=tuple(
            PlaceShare(layer=layer, role=role, alpha=alpha)
            for layer, role, alpha in entry.mix.shares
        ),
        rest=entry.mix.rest,
        fate=entry.fate,
        recall=_score(entry.correct[Objective.RECALL]),
        reasoning=_score(entry.correct[Objective.REASONING]),
        front=in_front,
    )


def _confirmed(entry: Entry, known: Sequence[Entry]) -> ConfirmedCandidate:
    recall, reasoning = (
        tuple(_difference(entry, other, objective) for other in known[:2] if other is not entry)
        for objective in Objective
    )
    return ConfirmedCandidate(
        label=entry.label,
        recall=_score(entry.correct[Objective.RECALL]),
        reasoning=_score(entry.correct[Objective.REASONING]),
        recall_differences=recall,
        reasoning_differences=reasoning,
    )


def _difference(entry: Entry, other: Entry, objective: Objective) -> Comparison:
    scores = PairedScores.of(entry.correct[objective], other.correct[objective])
    return paired_comparison(entry.label, other.label, scores)


def _score(answers: Sequence[bool]) -> TuningScore:
    correct, n = sum(answers), len(answers)
    return TuningScore(correct=correct, n=n, value=correct / n, interval=wilson(correct, n))
