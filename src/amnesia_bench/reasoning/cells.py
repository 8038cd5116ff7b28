"""The cells of a reasoning task: each metric is a mean over problems, or the reason for none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from amnesia_bench.reasoning.judging import ScoringResult
from amnesia_bench.reasoning.reduce import (
    average,
    majority,
    majority_expected,
    mean_estimate,
    pass_at,
)
from amnesia_bench.reasoning.tasks.task import ReasoningTask, Reducer
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Cell, FinishReason, Generation, Outcome
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


def metrics_of(task: ReasoningTask, repeats: int) -> dict[str, Metric]:
    """Return a task's metrics by name; those that end in `_tokens` count, the others are shares."""
    metrics: dict[str, Metric] = dict(compared_metrics(task, repeats))
    if Reducer.MAJORITY in task.reducers:
        metrics[f"maj_expected@{repeats}"] = lambda p: majority_expected(p.correct, p.votes)
        metrics["no_vote_rate"] = lambda p: float(not any(p.answered))
    if Reducer.PASS in task.reducers:
        # A function per k: a lambda here would see only the last.
        metrics |= {f"pass@{k}": _pass_metric(k) for k in (2, 4, 8, 16) if k <= repeats}
    metrics["extraction_rate"] = lambda p: average(p.answered)
    metrics["length_cut_rate"] = lambda p: average(p.cut)
    metrics["mean_new_tokens"] = lambda p: sum(p.new_tokens) / len(p.new_tokens)
    return metrics


def compared_metrics(task: ReasoningTask, repeats: int) -> Mapping[str, Metric]:
    """Return the metrics that methods are compared by: their values are multiples of 1/repeats."""
    metrics: dict[str, Metric] = {}
    if Reducer.AVERAGE in task.reducers:
        name = task.metric if task.metric and repeats == 1 else f"avg@{repeats}"
        metrics[name] = lambda p: average(p.correct)
    if Reducer.MAJORITY in task.reducers:
        metrics[f"maj@{repeats}"] = lambda p: majority(p.correct, p.votes)
    return metrics


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
    task: ReasoningTask, run: ReasoningRun, generations: Sequence[Generation], judged: ScoringResult
) -> tuple[ProblemValues, ...]:
    """Return the value of every metric on each problem of a complete run."""
    metrics = metrics_of(task, run.repeats)
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
    task: ReasoningTask,
    run: ReasoningRun,
    problems: Sequence[ProblemValues],
    incomplete: str | None,
    source: CellSource,
) -> tuple[Cell, ...]:
    """Return a cell per metric; without values when the run is incomplete."""
    cells = []
    for name in metrics_of(task, run.repeats):
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


def _pass_metric(k: int) -> Metric:
    return lambda problem: pass_at(problem.correct, k)
