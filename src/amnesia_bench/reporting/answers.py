"""Read the individual answers that a cell summarises, from the files in the cell's folder.

Methods are compared on the same prompts or problems, so the key of an answer consists of its seed,
the identity of the prompt set or problem set, and the index of the prompt or problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from amnesia_bench.errors import UserError
from amnesia_bench.records.evaluation import Cell, Outcome, Verdict
from amnesia_bench.records.reasoning import ProblemValues
from amnesia_bench.records.recall import RecallSample
from amnesia_bench.reporting.sources import CellEntry
from amnesia_bench.store.problem_values import PROBLEMS, check_problems

AnswerKey = tuple[str | None, str, int]
Answers = Mapping[AnswerKey, float]
Record = TypeVar("Record")

SAMPLES, VERDICTS = "samples.jsonl", "verdicts.jsonl"
_PROMPT_ROLES = ("prompts", "problems")
_ROUNDING = 1e-9


def answers_of(entry: CellEntry) -> Answers:
    """Return the cell's metric for every single prompt or problem; empty if unknown.

    Raises:
        UserError: a line is cut off, or the number or mean of these values differs from the cell's.
    """
    cell = entry.cell
    if cell.value is None:
        return {}
    identity = prompts_identity(cell)
    values = _values(entry)
    if identity is None or not values:
        return {}
    mean = sum(values.values()) / len(values)
    if len(values) != cell.n or abs(mean - cell.value) > _ROUNDING:
        raise UserError(
            f"{entry.path}: {cell.task} {cell.metric} is {cell.value} (n = {cell.n}), but the "
            f"answers next to it have the mean {mean} (n = {len(values)})",
            hint="They belong to two runs: remove the folder and run the evaluation again.",
        )
    return {(entry.seed, identity, doc): value for doc, value in values.items()}


def prompts_identity(cell: Cell) -> str | None:
    """Return the identity of a cell's prompt set or problem set; None if unknown."""
    return next((p.identity for p in cell.parents if p.role in _PROMPT_ROLES), None)


def recall_samples_of(entry: CellEntry) -> tuple[RecallSample, ...]:
    """Return the judged recall answers of a cell, with needle depths; empty if there are none."""
    cell = entry.cell
    task = f"{cell.task}@{cell.context_tokens}"
    # A check writes the answers of several checkpoints to one file. An answer belongs to a cell if
    # its role is the role of one of the cell's parents.
    roles = {parent.role for parent in cell.parents}
    return tuple(
        sample
        for sample in _records_of(entry, RecallSample, SAMPLES)
        if sample.role in roles and sample.key.task == task
    )


def _values(entry: CellEntry) -> dict[int, float]:
    cell = entry.cell
    if cell.context_tokens is None:
        problems = _records_of(entry, ProblemValues, PROBLEMS)
        if problems:
            check_problems(entry.path.with_name(PROBLEMS), [cell])
        return {p.doc: p.values[cell.metric] for p in problems if cell.metric in p.values}
    if samples := recall_samples_of(entry):
        return {sample.key.doc: sample.score for sample in samples}
    return {
        verdict.key.doc: float(verdict.outcome is Outcome.CORRECT)
        for verdict in _records_of(entry, Verdict, VERDICTS)
        if _is_of_cell(verdict, cell)
    }


def _is_of_cell(verdict: Verdict, cell: Cell) -> bool:
    return verdict.key.task == f"{cell.task}@{cell.context_tokens}"


def _records_of(entry: CellEntry, kind: type[Record], name: str) -> tuple[Record, ...]:
    return entry.files.records(kind, entry.path.with_name(name), entry.artifact)
