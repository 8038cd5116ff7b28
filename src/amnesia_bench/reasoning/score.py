"""Score generated answers: produce verdicts and cells, without a GPU or torch.

Scoring writes three files to `<folder>/scored_<scorer>/`: `verdicts.jsonl`, `problems.jsonl` (the
metric values per problem, for paired comparisons) and, last, `cells.json`. It can be repeated.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench.config.eval_schema import Think
from amnesia_bench.errors import UserError
from amnesia_bench.inference.generation import GENERATIONS, read_generations
from amnesia_bench.reasoning.cells import (
    CellSource,
    cells_of,
    missing_answers,
    problem_values,
    run_settings,
)
from amnesia_bench.reasoning.code.livecodebench import ProgramScorer
from amnesia_bench.reasoning.documents import task_documents
from amnesia_bench.reasoning.run_record import read_run
from amnesia_bench.reasoning.task import Attempt, ProblemSet, ReasoningTask, Scorer, ScoringResult
from amnesia_bench.reasoning.tasks import task_named
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Cell, Generation, Outcome, Verdict
from amnesia_bench.records.reasoning import ReasoningRun
from amnesia_bench.requests.reasoning import ScoreRequest
from amnesia_bench.sandbox import Limits, open_launcher
from amnesia_bench.store.checksums import check_checksum, write_checksums
from amnesia_bench.store.files import explaining_write_errors, make_folder, read_json, replace_text
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.problem_values import (
    PROBLEMS,
    problems_parent,
    problems_text,
)
from amnesia_bench.tokenizers.chat_format import without_thinking

VERDICTS, CELLS = "verdicts.jsonl", "cells.json"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The result of scoring, as written to `folder`."""

    folder: Path
    run: ReasoningRun
    scorer: str
    verdicts: tuple[Verdict, ...]
    cells: tuple[Cell, ...]

    @property
    def outcomes(self) -> Mapping[Outcome, int]:
        """The number of answers with each outcome."""
        return Counter(verdict.outcome for verdict in self.verdicts)

    @property
    def out_of_time(self) -> tuple[Verdict, ...]:
        """The verdicts on answers that exceeded a time limit; they count as wrong."""
        return tuple(v for v in self.verdicts if v.outcome is Outcome.TIME_LIMIT)


def score(request: ScoreRequest, out: Path | None = None) -> Scored:
    """Judge the answers in a folder and summarise them; the run may be unfinished.

    Args:
        request: the folder of the answers, the scorer, and its options.
        out: the parent folder of `scored_<scorer>`; None for the folder of the answers.

    Raises:
        UserError: there are no answers, a file is damaged, the problems are not those that were
            answered, or the task has no such scorer.
        MissingEnvironmentError: a package is missing, the hub cannot be reached, or there is no
            sandbox; nothing was written.
    """
    folder = request.answers
    run, engine = read_run(folder)
    task = task_named(run.task)
    name = scorer_name(task, request.scorer, run)
    generations = read_generations(folder)
    documents = _documents(task, run, request.data)
    _check_keys(generations, run, folder)
    attempts = attempts_of(run, generations)
    judge, judge_settings = _open_scorer(task, name, run, request)
    judged = judge(documents.rows, attempts)
    incomplete = missing_answers(run, generations, judged)
    problems = () if incomplete else problem_values(run, generations, judged)
    values = problems_text(problems)
    source = CellSource(
        settings={**engine, **run_settings(run), **judge_settings, "scorer": name},
        parents=(*_parents(run, documents, folder), problems_parent(values)),
    )
    cells = cells_of(run, problems, incomplete, source)
    scored = scored_folder(out or folder, name)
    _write(scored, judged, values, cells)
    return Scored(folder=scored, run=run, scorer=name, verdicts=judged.verdicts, cells=cells)


def attempts_of(run: ReasoningRun, generations: Sequence[Generation]) -> list[Attempt]:
    """Return the answers of a run as attempts, without their thinking."""
    think = None
    if run.think_open is not None and run.think_close is not None:
        think = Think(open=run.think_open, close=run.think_close)
    return [
        Attempt(
            key=generation.key,
            text=without_thinking(generation.text, think, opened=run.thinking_opened),
        )
        for generation in generations
    ]


def read_cells(folder: Path) -> tuple[Cell, ...]:
    """Read the cells that scoring wrote.

    Raises:
        UserError: the file is damaged or was changed since it was written.
    """
    path = folder / CELLS
    check_checksum(path, "Score the answers again: amnesia score DIR")
    cells = codec.from_json(_Cells, {"cells": read_json(path)}, str(path))
    return cells.cells


@dataclass(frozen=True, kw_only=True)
class _Cells:
    cells: tuple[Cell, ...]


def scored_folder(folder: Path, scorer: str) -> Path:
    """Return the folder in `folder` that contains a scorer's results."""
    return folder / f"scored_{scorer}"


def scorer_name(task: ReasoningTask, scorer: str | None, run: ReasoningRun) -> str:
    """Return the name of the scorer to use.

    It is `scorer` if given, else the scorer with the run's checker, else the task's first scorer.

    Raises:
        UserError: the task has no scorer with this name.
    """
    of_checker = (
        candidate
        for candidate, judge in task.scorers.items()
        if isinstance(judge, ProgramScorer) and judge.checker.value == run.checker
    )
    name = scorer or next(of_checker, next(iter(task.scorers)))
    if name not in task.scorers:
        raise UserError(
            f"{task.name}: no scorer {name!r}", hint=f"Choose one of {', '.join(task.scorers)}."
        )
    return name


def _open_scorer(
    task: ReasoningTask, name: str, run: ReasoningRun, request: ScoreRequest
) -> tuple[Scorer, Mapping[str, str]]:
    """Return a scorer that is ready to judge, and the settings on which its verdicts depend."""
    scorer = task.scorers[name]
    if not isinstance(scorer, ProgramScorer):
        if request.unsafe_no_sandbox:
            raise UserError(
                f"--unsafe-no-sandbox only applies to code tasks, and {task.name} is not one"
            )
        return scorer, {}
    if run.seconds_per_test is None:
        raise UserError(f"{task.name}: run.json has no seconds_per_test")
    limits = Limits(seconds_per_test=run.seconds_per_test)
    launcher = open_launcher(unsafe_no_sandbox=request.unsafe_no_sandbox)
    opened = replace(scorer, launcher=launcher, limits=limits, workers=request.workers)
    return opened, opened.settings


def _documents(task: ReasoningTask, run: ReasoningRun, data: Path | None) -> ProblemSet:
    local = data or (None if run.data.startswith(f"{task.source.hub_id}@") else Path(run.data))
    documents = task_documents(task, local, run.documents, run.window)
    if documents.sha256 != run.documents_sha256:
        raise UserError(
            f"{documents.origin}: these are not the problems that were answered "
            f"(sha256 {documents.sha256[:12]}, answered {run.documents_sha256[:12]})",
            hint="Pass the data set that `amnesia generate` read: --data FILE",
        )
    return documents


def _check_keys(generations: Sequence[Generation], run: ReasoningRun, folder: Path) -> None:
    if not generations:
        raise UserError(f"{folder}: {GENERATIONS} contains no answers")
    for key in (generation.key for generation in generations):
        inside = 0 <= key.doc < run.documents and 0 <= key.repeat < run.repeats
        if key.task != run.task or not inside:
            raise UserError(f"{folder}: {GENERATIONS} has an answer that the run lacks: {key}")


def _parents(run: ReasoningRun, documents: ProblemSet, folder: Path) -> tuple[Parent, ...]:
    answers = folder / GENERATIONS
    return (
        Parent(role="checkpoint", location=run.model, identity=run.checkpoint),
        Parent(role="generations", location=str(answers), identity=f"sha256:{sha256_of(answers)}"),
        Parent(role="problems", location=documents.origin, identity=f"sha256:{documents.sha256}"),
    )


def _write(out: Path, judged: ScoringResult, problems: str, cells: Sequence[Cell]) -> None:
    text = json.dumps(codec.to_json(list(cells)), indent=2, allow_nan=False) + "\n"
    verdicts = (json.dumps(codec.to_json(v), allow_nan=False) + "\n" for v in judged.verdicts)
    with explaining_write_errors(out, "the answers are unchanged"):
        make_folder(out)
        # `cells.json` marks a finished scoring. Remove it first, so that an interruption cannot
        # leave it next to files of another scoring.
        (out / CELLS).unlink(missing_ok=True)
        replace_text(out / VERDICTS, "".join(verdicts))
        replace_text(out / PROBLEMS, problems)
        replace_text(out / CELLS, text)
        write_checksums(out, [VERDICTS, PROBLEMS, CELLS])
