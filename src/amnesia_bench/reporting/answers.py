"""The single answers behind a cell, read from the files next to it.

Methods are compared on the same prompts or problems, so an answer's key names its seed, the
identity of the prompts and its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from amnesia_bench.errors import UserError
from amnesia_bench.records.evaluation import Cell, Outcome, Verdict
from amnesia_bench.records.reasoning import ProblemValues
from amnesia_bench.records.recall import RecallSample
from amnesia_bench.reporting.sources import FoundCell
from amnesia_bench.store.problem_values import PROBLEMS, check_problems

AnswerKey = tuple[str | None, str, int]
Answers = Mapping[AnswerKey, float]
Record = TypeVar("Record")

SAMPLES, VERDICTS = "samples.jsonl", "verdicts.jsonl"
_PROMPT_ROLES = ("prompts", "problems")
_ROUNDING = 1e-9


def answers_of(found: FoundCell) -> Answers:
    """Return the value of every answer (a problem's mean, where it has several); empty if unknown.

    Raises:
        UserError: a line is cut off, or the answers do not make up the cell's value.
    """
    cell = found.cell
    if cell.value is None:
        return {}
    identity = prompts_identity(cell)
    values = _values(found)
    if identity is None or not values:
        return {}
    mean = sum(values.values()) / len(values)
    if len(values) != cell.n or abs(mean - cell.value) > _ROUNDING:
        raise UserError(
            f"{found.path}: {cell.task} {cell.metric} is {cell.value} of {cell.n}, but the answers "
            f"beside it make {mean} of {len(values)}",
            hint="They are of two runs: remove the folder and run the evaluation again.",
        )
    return {(found.seed, identity, doc): value for doc, value in values.items()}


def prompts_identity(cell: Cell) -> str | None:
    """Return the identity of the prompts or problems that a cell is of; None where unknown."""
    return next((p.identity for p in cell.parents if p.role in _PROMPT_ROLES), None)


def recall_samples_of(found: FoundCell) -> tuple[RecallSample, ...]:
    """Return the judged answers to a cell's prompts, with depths; empty where none are kept."""
    cell = found.cell
    task = f"{cell.task}@{cell.context_tokens}"
    # A check keeps several checkpoints' answers side by side; each is a parent of its own cells.
    roles = {parent.role for parent in cell.parents}
    return tuple(
        sample
        for sample in _beside(found, RecallSample, SAMPLES)
        if sample.role in roles and sample.key.task == task
    )


def _values(found: FoundCell) -> dict[int, float]:
    cell = found.cell
    if cell.context_tokens is None:
        problems = _beside(found, ProblemValues, PROBLEMS)
        if problems:
            check_problems(found.path.with_name(PROBLEMS), [cell])
        return {p.doc: p.values[cell.metric] for p in problems if cell.metric in p.values}
    if samples := recall_samples_of(found):
        return {sample.key.doc: float(sample.correct) for sample in samples}
    return {
        verdict.key.doc: float(verdict.outcome is Outcome.CORRECT)
        for verdict in _beside(found, Verdict, VERDICTS)
        if _belongs(verdict, cell)
    }


def _belongs(verdict: Verdict, cell: Cell) -> bool:
    return verdict.key.task == f"{cell.task}@{cell.context_tokens}"


def _beside(found: FoundCell, kind: type[Record], name: str) -> tuple[Record, ...]:
    return found.files.records(kind, found.path.with_name(name), found.artifact)
