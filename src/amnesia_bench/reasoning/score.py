"""From generations to verdicts and cells: no GPU, no torch, and again as often as wanted.

`<folder>/scored_<scorer>/` gets `verdicts.jsonl`, `problems.jsonl` (the values of each problem,
for paired comparisons) and `cells.json`, which is written last.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench.config.eval_schema import Think
from amnesia_bench.errors import UserError
from amnesia_bench.inference.generation import GENERATIONS, read_generations
from amnesia_bench.reasoning.answering import read_run
from amnesia_bench.reasoning.cells import (
    CellSource,
    cells_of,
    compared_metrics,
    missing_answers,
    problem_values,
    run_settings,
)
from amnesia_bench.reasoning.code.livecodebench import ProgramScorer
from amnesia_bench.reasoning.documents import task_documents
from amnesia_bench.reasoning.judging import Attempt, Scorer, ScoringResult
from amnesia_bench.reasoning.paired import differences
from amnesia_bench.reasoning.tasks import task_named
from amnesia_bench.reasoning.tasks.task import ProblemSet, ReasoningTask
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Cell, Generation, Outcome, Verdict
from amnesia_bench.records.reasoning import Difference, ReasoningRun
from amnesia_bench.sandbox import Limits, open_launcher
from amnesia_bench.store.checksums import check_checksum, write_checksums
from amnesia_bench.store.files import explaining_write_errors, make_folder, read_json, replace_text
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.problem_values import (
    PROBLEMS,
    problems_parent,
    problems_text,
    read_problems,
)
from amnesia_bench.tokenizers.chat_format import without_thinking

VERDICTS, CELLS = "verdicts.jsonl", "cells.json"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What scoring found; `folder` holds the same."""

    folder: Path
    run: ReasoningRun
    scorer: str
    verdicts: tuple[Verdict, ...]
    cells: tuple[Cell, ...]

    @property
    def outcomes(self) -> Mapping[Outcome, int]:
        """How many answers had each outcome."""
        return Counter(verdict.outcome for verdict in self.verdicts)

    @property
    def out_of_time(self) -> tuple[Verdict, ...]:
        """The verdicts on answers that took too long to judge; they count as wrong."""
        return tuple(v for v in self.verdicts if v.outcome is Outcome.TIME_LIMIT)


def score(
    folder: Path,
    scorer: str | None = None,
    data: Path | None = None,
    out: Path | None = None,
    *,
    unsafe_no_sandbox: bool = False,
    workers: int | None = None,
) -> Scored:
    """Judge the answers in a folder and sum them up.

    Args:
        folder: that `generate_answers` wrote, finished or not.
        scorer: one of the task's; None is its first, or that of the `checker` which the answers
            were generated for.
        data: where the problems are now, if not where they were.
        out: where the results go; None is the folder of the answers.
        unsafe_no_sandbox: run the programs that answers hold as plain processes.
        workers: programs that run at once; None is one per core.

    Raises:
        UserError: no answers, a damaged file, other problems than were answered, no such scorer.
        MissingEnvironmentError: what judges is not installed, the hub cannot be reached, or there
            is no sandbox. Nothing was written.
    """
    run, engine = read_run(folder)
    task = task_named(run.task)
    name = _scorer_name(task, scorer, run)
    generations = read_generations(folder)
    documents = _documents(task, run, data)
    _check_keys(generations, run, folder)
    think = None
    if run.think_open is not None and run.think_close is not None:
        think = Think(open=run.think_open, close=run.think_close)
    attempts = [
        Attempt(
            key=generation.key,
            text=without_thinking(generation.text, think, opened=run.thinking_opened),
        )
        for generation in generations
    ]
    judge, judge_settings = _opened(task, name, run, unsafe_no_sandbox, workers)
    judged = judge(documents.rows, attempts)
    incomplete = missing_answers(run, generations, judged)
    problems = () if incomplete else problem_values(task, run, generations, judged)
    values = problems_text(problems)
    source = CellSource(
        settings={**engine, **run_settings(run), **judge_settings, "scorer": name},
        parents=(*_parents(run, documents, folder), problems_parent(values)),
    )
    cells = cells_of(task, run, problems, incomplete, source)
    scored = (out or folder) / f"scored_{name}"
    _write(scored, judged, values, cells)
    return Scored(folder=scored, run=run, scorer=name, verdicts=judged.verdicts, cells=cells)


def compare(first: Scored, other: Path) -> tuple[Difference, ...]:
    """Compare scored answers with those in another folder, scored by the same scorer before.

    Raises:
        UserError: the other folder is not scored, has changed since, or answers other problems or
            other often.
    """
    folder = other / first.folder.name
    if not (folder / CELLS).is_file():
        raise UserError(
            f"{other}: not scored by {first.scorer}",
            hint=shlex.join(["amnesia", "score", str(other), "--scorer", first.scorer]),
        )
    run, _ = read_run(other)
    for name in ("task", "documents_sha256", "repeats"):
        ours, theirs = getattr(first.run, name), getattr(run, name)
        if ours != theirs:
            raise UserError(f"cannot be compared: {name} is {ours} here, {theirs} in {other}")
    others = read_cells(folder)
    if _parents_of_answers(others) != {f"sha256:{sha256_of(other / GENERATIONS)}"}:
        raise UserError(
            f"{other}: has other answers than when it was scored",
            hint=shlex.join(["amnesia", "score", str(other), "--scorer", first.scorer]),
        )
    for where, cells in ((first.folder, first.cells), (folder, others)):
        if reason := next((cell.incomplete for cell in cells if cell.incomplete), None):
            raise UserError(f"{where}: cannot be compared, it is incomplete: {reason}")
    ours, theirs = read_problems(first.folder, first.cells), read_problems(folder, others)
    metrics = compared_metrics(task_named(run.task), run.repeats)
    return differences(ours, theirs, list(metrics), run.repeats)


def read_cells(folder: Path) -> tuple[Cell, ...]:
    """Read the cells that scoring wrote.

    Raises:
        UserError: they are damaged, or were changed since.
    """
    path = folder / CELLS
    check_checksum(path, "Score the answers again: amnesia score DIR.")
    cells = codec.from_json(_Cells, {"cells": read_json(path)}, str(path))
    return cells.cells


@dataclass(frozen=True, kw_only=True)
class _Cells:
    cells: tuple[Cell, ...]


def _scorer_name(task: ReasoningTask, scorer: str | None, run: ReasoningRun) -> str:
    asked = (
        each
        for each, judge in task.scorers.items()
        if isinstance(judge, ProgramScorer) and judge.checker.value == run.checker
    )
    name = scorer or next(asked, next(iter(task.scorers)))
    if name not in task.scorers:
        raise UserError(
            f"{task.name}: no scorer {name!r}", hint=f"It has {', '.join(task.scorers)}."
        )
    return name


def _opened(
    task: ReasoningTask,
    name: str,
    run: ReasoningRun,
    unsafe_no_sandbox: bool,
    workers: int | None,
) -> tuple[Scorer, Mapping[str, str]]:
    """Return a scorer ready to judge, and what its verdicts depend on besides its name."""
    scorer = task.scorers[name]
    if not isinstance(scorer, ProgramScorer):
        if unsafe_no_sandbox:
            raise UserError(f"--unsafe-no-sandbox: answers to {task.name} are no programs")
        return scorer, {}
    if run.seconds_per_test is None:
        raise UserError(f"{task.name}: its run.json says no seconds_per_test")
    limits = Limits(seconds_per_test=run.seconds_per_test)
    launcher = open_launcher(unsafe_no_sandbox=unsafe_no_sandbox)
    opened = replace(scorer, launcher=launcher, limits=limits, workers=workers)
    return opened, opened.settings


def _documents(task: ReasoningTask, run: ReasoningRun, data: Path | None) -> ProblemSet:
    local = data or (None if run.data.startswith(f"{task.source.hub_id}@") else Path(run.data))
    documents = task_documents(task, local, run.documents, run.window)
    if documents.sha256 != run.documents_sha256:
        raise UserError(
            f"{documents.origin}: not the problems that were answered "
            f"(sha256 {documents.sha256[:12]}, answered {run.documents_sha256[:12]})",
            hint="Give the same data set as to `amnesia generate`: --data FILE.",
        )
    return documents


def _check_keys(generations: Sequence[Generation], run: ReasoningRun, folder: Path) -> None:
    if not generations:
        raise UserError(f"{folder}: {GENERATIONS} holds no answers")
    for key in (generation.key for generation in generations):
        inside = 0 <= key.doc < run.documents and 0 <= key.repeat < run.repeats
        if key.task != run.task or not inside:
            raise UserError(f"{folder}: holds an answer that was not asked for: {key}")


def _parents(run: ReasoningRun, documents: ProblemSet, folder: Path) -> tuple[Parent, ...]:
    answers = folder / GENERATIONS
    return (
        Parent(role="checkpoint", location=run.model, identity=run.checkpoint),
        Parent(role="generations", location=str(answers), identity=f"sha256:{sha256_of(answers)}"),
        Parent(role="problems", location=documents.origin, identity=f"sha256:{documents.sha256}"),
    )


def _parents_of_answers(cells: Sequence[Cell]) -> set[str]:
    return {p.identity for cell in cells for p in cell.parents if p.role == "generations"}


def _write(out: Path, judged: ScoringResult, problems: str, cells: Sequence[Cell]) -> None:
    text = json.dumps(codec.to_json(list(cells)), indent=2, allow_nan=False) + "\n"
    verdicts = (json.dumps(codec.to_json(v), allow_nan=False) + "\n" for v in judged.verdicts)
    with explaining_write_errors(out, "the answers are as they were"):
        make_folder(out)
        # The cells vouch for the rest: of two scorings no mixture may look finished.
        (out / CELLS).unlink(missing_ok=True)
        replace_text(out / VERDICTS, "".join(verdicts))
        replace_text(out / PROBLEMS, problems)
        replace_text(out / CELLS, text)
        write_checksums(out, [VERDICTS, PROBLEMS, CELLS])
