"""Is one method better than another on the same problems? An exact test and an interval."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.inference.generation import GENERATIONS
from amnesia_bench.reasoning.problem_statistics import differences
from amnesia_bench.reasoning.run_record import read_run
from amnesia_bench.reasoning.score import CELLS, read_cells, scored_folder, scorer_name
from amnesia_bench.reasoning.tasks import task_named
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.records.ids import compared_metrics
from amnesia_bench.records.reasoning import Difference, ProblemValues
from amnesia_bench.requests.reasoning import CompareRequest
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.problem_values import read_problems


def compare(request: CompareRequest) -> tuple[Difference, ...]:
    """Compare two folders of answers, both scored before, problem by problem.

    Raises:
        UserError: one is not scored by this scorer, is incomplete or has changed since; or their
            task, problems or repeats differ.
    """
    first, second = request.first, request.second
    run, other = read_run(first)[0], read_run(second)[0]
    for name in ("task", "documents_sha256", "repeats"):
        values = getattr(run, name), getattr(other, name)
        if values[0] != values[1]:
            raise UserError(
                f"cannot be compared: {name} is {values[0]} in {first}, {values[1]} in {second}"
            )
    scorer = scorer_name(task_named(run.task), request.scorer, run)
    ours = _read_values(first, request.first_scores or first, scorer)
    theirs = _read_values(second, second, scorer)
    return differences(ours, theirs, compared_metrics(run.task, run.repeats), run.repeats)


def _read_values(answers: Path, scores: Path, scorer: str) -> tuple[ProblemValues, ...]:
    """Read the value of each metric on each problem, as one scorer wrote them."""
    folder = scored_folder(scores, scorer)
    score_again = shlex.join(["amnesia", "score", str(answers), "--scorer", scorer])
    if not (folder / CELLS).is_file():
        raise UserError(f"{answers}: not scored by {scorer}", hint=score_again)
    if not (answers / GENERATIONS).is_file():
        raise UserError(f"{answers}: holds no {GENERATIONS}")
    cells = read_cells(folder)
    if _scored_answers(cells) != {f"sha256:{sha256_of(answers / GENERATIONS)}"}:
        raise UserError(f"{answers}: has other answers than when it was scored", hint=score_again)
    if reason := next((cell.incomplete for cell in cells if cell.incomplete), None):
        raise UserError(f"{folder}: cannot be compared, it is incomplete: {reason}")
    return read_problems(folder, cells)


def _scored_answers(cells: Sequence[Cell]) -> set[str]:
    return {p.identity for cell in cells for p in cell.parents if p.role == "generations"}
