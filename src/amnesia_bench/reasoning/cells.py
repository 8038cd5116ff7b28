"""Compute the cells of a reasoning task: each metric's mean over problems, if the run is complete.

The cells of an incomplete run record why they have no value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from amnesia_bench.printable import counted
from amnesia_bench.reasoning.problem_statistics import (
    average,
    majority,
    majority_expected,
    mean_estimate,
    pass_at,
)
from amnesia_bench.reasoning.task import ScoringResult
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Cell, FinishReason, Generation, Outcome
from amnesia_bench.records.ids import REASONING_TASKS, reasoning_metrics
from amnesia_bench.records.reasoning import ProblemValues, ReasoningRun

# A cell records these as fields or parents, except `checker`, which the scorer records.
_NOT_SETTINGS = {"task", "model", "method", "checkpoint", "data", "documents_sha256", "repeats"} | {
    "checker"
}
_NAMED_MISSING = 3


@dataclass(frozen=True, kw_only=True)
class ProblemAnswers:
    """The verdicts, votes and lengths of the answers to one problem, ordered by repeat.

    `cut` is true for answers that reached the length limit; `new_tokens` are numbers of generated
    token ids.
    """

    correct: tuple[bool, ...]
    answered: tuple[bool, ...]
    votes: tuple[int | None, ...]
    cut: tuple[bool, ...]
    new_tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CellSource:
    """The settings and parents that all cells of a run share."""

    settings: Mapping[str, str]
    parents: tuple[Parent, ...]


Metric = Callable[[ProblemAnswers], float]
# Functions that compute a metric's value on one problem, by metric name without `@k`. The second
# argument is k.
_VALUES: Mapping[str, Callable[[ProblemAnswers, int], float]] = {
    "avg": lambda p, _: average(p.correct),
    "maj": lambda p, _: majority(p.correct, p.votes),
    "maj_expected": lambda p, _: majority_expected(p.correct, p.votes),
    "no_vote_rate": lambda p, _: float(not any(p.answered)),
    "pass": lambda p, k: pass_at(p.correct, k),
    "extraction_rate": lambda p, _: average(p.answered),
    "length_cut_rate": lambda p, _: average(p.cut),
    "mean_new_tokens": lambda p, _: sum(p.new_tokens) / len(p.new_tokens),
}


def metrics_of(task: str, repeats: int) -> dict[str, Metric]:
    """Return a task's metric functions by name; `records.ids.reasoning_metrics` lists the names."""
    return {name: _metric(task, name) for name in reasoning_metrics(task, repeats)}


def _metric(task: str, name: str) -> Metric:
    kind, _, k = name.partition("@")
    value = _VALUES["avg" if name == REASONING_TASKS[task].average else kind]
    return lambda problem: value(problem, int(k or 1))


def missing_answers(
    run: ReasoningRun, generations: Sequence[Generation], judged: ScoringResult
) -> str | None:
    """Return why a run is incomplete, or None if it is complete."""
    answers = Counter(generation.key.doc for generation in generations)
    incomplete = [doc for doc in range(run.documents) if answers[doc] < run.repeats]
    if incomplete:
        missing = run.documents * run.repeats - len(generations)
        named = ", ".join(
            f"{doc} ({answers[doc]} of {run.repeats})" for doc in incomplete[:_NAMED_MISSING]
        )
        more = ", ..." if len(incomplete) > _NAMED_MISSING else ""
        verb = "is" if missing == 1 else "are"
        noun = "problem" if len(incomplete) == 1 else "problems"
        return f"{counted(missing, 'answer')} {verb} missing, to {noun} {named}{more}"
    unscored = sum(verdict.outcome is Outcome.UNSCORED for verdict in judged.verdicts)
    return f"{counted(unscored, 'answer')} could not be scored" if unscored else None


def problem_values(
    run: ReasoningRun, generations: Sequence[Generation], judged: ScoringResult
) -> tuple[ProblemValues, ...]:
    """Return the value of every metric on each problem of a complete run."""
    metrics = metrics_of(run.task, run.repeats)
    votes = judged.votes or (None,) * len(generations)
    answers = zip(generations, judged.verdicts, votes, strict=True)
    problems = []
    for doc, group in groupby(answers, lambda answer: answer[0].key.doc):
        repeats = list(group)
        problem = ProblemAnswers(
            correct=tuple(v.outcome is Outcome.CORRECT for _, v, _ in repeats),
            answered=tuple(v.outcome is not Outcome.NO_ANSWER for _, v, _ in repeats),
            votes=tuple(vote for _, _, vote in repeats),
            cut=tuple(g.finish_reason is FinishReason.LENGTH for g, _, _ in repeats),
            new_tokens=tuple(len(g.tokens) for g, _, _ in repeats),
        )
        values = {name: metric(problem) for name, metric in metrics.items()}
        problems.append(ProblemValues(doc=doc, values=values))
    return tuple(problems)


def cells_of(
    run: ReasoningRun,
    problems: Sequence[ProblemValues],
    incomplete: str | None,
    source: CellSource,
) -> tuple[Cell, ...]:
    """Return one cell per metric; the cells of an incomplete run have no values."""
    cells = []
    for name in metrics_of(run.task, run.repeats):
        values = [problem.values[name] for problem in problems]
        estimate = None if incomplete else mean_estimate(values)
        cells.append(
            Cell(
                model=run.model,
                method=run.method,
                task=run.task,
                context_tokens=None,
                metric=name,
                value=None if estimate is None else estimate.value,
                n=0 if estimate is None else estimate.n,
                repeats=run.repeats,
                stderr=None if estimate is None else estimate.stderr,
                interval=None if estimate is None else estimate.interval,
                incomplete=incomplete,
                settings=source.settings,
                parents=source.parents,
            )
        )
    return tuple(cells)


def run_settings(run: ReasoningRun) -> dict[str, str]:
    """Return the fields of a run that its cells record as settings."""
    return {
        name: str(value) for name, value in codec.to_json(run).items() if name not in _NOT_SETTINGS
    }
