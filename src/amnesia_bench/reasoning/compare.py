"""Compare two methods on the same problems with an exact paired test and a bootstrap interval."""

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
    """Compare two scored answer folders problem by problem; return one difference per metric.

    Raises:
        UserError: a folder was not scored by this scorer, its run is incomplete, its answers
            changed after scoring, or the two runs differ in task, problems or repeats.
    """
    first, second = request.first, request.second
    run, other = read_run(first)[0], read_run(second)[0]
    for name in ("task", "documents_sha256", "repeats"):
        values = getattr(run, name), getattr(other, name)
        if values[0] != values[1]:
            raise UserError(
                f"cannot compare: {name} is {values[0]} in {first} and {values[1]} in {second}"
            )
    scorer = scorer_name(task_named(run.task), request.scorer, run)
    first_values = _read_values(first, request.first_scores or first, scorer)
    second_values = _read_values(second, second, scorer)
    metrics = compared_metrics(run.task, run.repeats)
    return differences(first_values, second_values, metrics, run.repeats)


def _read_values(answers: Path, scores: Path, scorer: str) -> tuple[ProblemValues, ...]:
    """Read the metric values per problem that a scorer wrote."""
    folder = scored_folder(scores, scorer)
    score_again = shlex.join(["amnesia", "score", str(answers), "--scorer", scorer])
    if not (folder / CELLS).is_file():
        raise UserError(f"{answers}: not scored by {scorer}", hint=score_again)
    if not (answers / GENERATIONS).is_file():
        raise UserError(f"{answers}: {GENERATIONS} is missing")
    cells = read_cells(folder)
    if _scored_answers(cells) != {f"sha256:{sha256_of(answers / GENERATIONS)}"}:
        raise UserError(f"{answers}: the answers changed since they were scored", hint=score_again)
    if reason := next((cell.incomplete for cell in cells if cell.incomplete), None):
        raise UserError(f"{folder}: cannot compare an incomplete run: {reason}")
    return read_problems(folder, cells)


def _scored_answers(cells: Sequence[Cell]) -> set[str]:
    return {p.identity for cell in cells for p in cell.parents if p.role == "generations"}
