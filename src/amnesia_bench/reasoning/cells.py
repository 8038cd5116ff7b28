"""The cells of a reasoning task: each metric is a mean over problems, or the reason for none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

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

# These stand in a cell's own fields or in its parents.
# Fields of a cell, or its parents; `checker` is what the scorer records.
_NOT_SETTINGS = {"task", "model", "method", "checkpoint", "data", "documents_sha256", "repeats"} | {
    "checker"
}
_NAMED_MISSING = 3


@dataclass(frozen=True, kw_only=True)
class ProblemAnswers:
    """The answers to one problem, in the order of their repeats."""

    correct: tuple[bool, ...]
    answered: tuple[bool, ...]
    votes: tuple[int | None, ...]
    cut: tuple[bool, ...]
    new_tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CellSource:
    """What every cell of a run says of where it comes from."""

    settings: Mapping[str, str]
    parents: tuple[Parent, ...]


Metric = Callable[[ProblemAnswers], float]
# What the name of a metric means for one problem; in those with `@k`, k is the second argument.
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
    """Return a task's metrics by name; see `records.ids.reasoning_metrics`."""
    return {name: _metric(task, name) for name in reasoning_metrics(task, repeats)}


def _metric(task: str, name: str) -> Metric:
    kind, _, k = name.partition("@")
    value = _VALUES["avg" if name == REASONING_TASKS[task].average else kind]
    return lambda problem: value(problem, int(k or 1))


def missing_answers(
    run: ReasoningRun, generations: Sequence[Generation], judged: ScoringResult
) -> str | None:
    """Say what keeps a run from being complete; None when nothing does."""
    there = Counter(generation.key.doc for generation in generations)
    short = [doc for doc in range(run.documents) if there[doc] < run.repeats]
    if short:
        missing = run.documents * run.repeats - len(generations)
        named = ", ".join(
            f"{doc} ({there[doc]} of {run.repeats})" for doc in short[:_NAMED_MISSING]
        )
        more = ", ..." if len(short) > _NAMED_MISSING else ""
        return f"{missing} answers are missing, to problems {named}{more}"
    unscored = sum(verdict.outcome is Outcome.UNSCORED for verdict in judged.verdicts)
    return f"{unscored} answers could not be scored" if unscored else None


def problem_values(
    run: ReasoningRun, generations: Sequence[Generation], judged: ScoringResult
) -> tuple[ProblemValues, ...]:
    """Return the value of every metric on each problem of a complete run."""
    metrics = metrics_of(run.task, run.repeats)
    votes = judged.votes or (None,) * len(generations)
    answers = zip(generations, judged.verdicts, votes, strict=True)
    found = []
    for doc, group in groupby(answers, lambda answer: answer[0].key.doc):
        ours = list(group)
        problem = ProblemAnswers(
            correct=tuple(v.outcome is Outcome.CORRECT for _, v, _ in ours),
            answered=tuple(v.outcome is not Outcome.NO_ANSWER for _, v, _ in ours),
            votes=tuple(vote for _, _, vote in ours),
            cut=tuple(g.finish_reason is FinishReason.LENGTH for g, _, _ in ours),
            new_tokens=tuple(len(g.tokens) for g, _, _ in ours),
        )
        values = {name: metric(problem) for name, metric in metrics.items()}
        found.append(ProblemValues(doc=doc, values=values))
    return tuple(found)


def cells_of(
    run: ReasoningRun,
    problems: Sequence[ProblemValues],
    incomplete: str | None,
    source: CellSource,
) -> tuple[Cell, ...]:
    """Return a cell per metric; without values when the run is incomplete."""
    cells = []
    for name in metrics_of(run.task, run.repeats):
        found = (
            None if incomplete else mean_estimate([problem.values[name] for problem in problems])
        )
        cells.append(
            Cell(
                model=run.model,
                method=run.method,
                task=run.task,
                context_tokens=None,
                metric=name,
                value=None if found is None else found.value,
                n=0 if found is None else found.n,
                repeats=run.repeats,
                stderr=None if found is None else found.stderr,
                interval=None if found is None else found.interval,
                incomplete=incomplete,
                settings=source.settings,
                parents=source.parents,
            )
        )
    return tuple(cells)


def run_settings(run: ReasoningRun) -> dict[str, str]:
    """Return what of a run is neither a field nor a parent of its cells."""
    return {
        name: str(value) for name, value in codec.to_json(run).items() if name not in _NOT_SETTINGS
    }
