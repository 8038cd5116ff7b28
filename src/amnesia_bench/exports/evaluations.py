"""Read what is exported: the complete cells of each model, and the answers that they summarise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.evaluation import Cell, Generation, Outcome, Verdict
from amnesia_bench.records.reasoning import ProblemValues
from amnesia_bench.reporting.answers import VERDICTS, prompts_identity, recall_samples_of
from amnesia_bench.reporting.artifact_files import ArtifactFiles
from amnesia_bench.reporting.sources import CellEntry, read_source
from amnesia_bench.requests.experiments import LabelledCells
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.json_rows import read_json_rows
from amnesia_bench.store.problem_values import PROBLEMS

Record = TypeVar("Record")

_LOWER_IS_BETTER = ("length_cut_rate", "no_vote_rate")
_ABANDONED = "Remove the file and run its stage again."


@dataclass(frozen=True, kw_only=True)
class ExportedSample:
    """One prompt or problem, with all answers to it.

    Attributes:
        doc: its index.
        texts: the answers; empty if the file of the answers is missing.
        answers: what the scorer extracted from each answer.
        correct: whether each answer is correct.
        reference: the correct answer; None if it is not next to the cells.
        values: the value of each metric on it.
        tokens: the lengths of prompt and answers in tokens; None if unknown.
        details: anything else about the prompt.
    """

    doc: int
    texts: tuple[str, ...]
    answers: tuple[str | None, ...]
    correct: tuple[bool, ...]
    reference: str | None
    values: Mapping[str, float]
    tokens: tuple[int, int] | None = None
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvaluatedTask:
    """The cells of one task at one context length (None for reasoning) by one scorer.

    `date` is the UTC time at which the evaluation ended, in ISO 8601; None if it is unknown.
    """

    task: str
    context_tokens: int | None
    scorer: str | None
    cells: tuple[Cell, ...]
    samples: tuple[ExportedSample, ...]
    date: str | None

    @property
    def name(self) -> str:
        """The name of the task with its length: `niah_single_3@32768`."""
        return self.task if self.context_tokens is None else f"{self.task}@{self.context_tokens}"


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model and its evaluated tasks; `checkpoint` is the identity of its weights."""

    name: str
    checkpoint: str | None
    tasks: tuple[EvaluatedTask, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """The evaluated models, and notes on what cannot be exported."""

    models: tuple[EvaluatedModel, ...]
    notes: tuple[str, ...]


def is_accuracy(metric: str) -> bool:
    """Return whether a metric is a share of correct answers, and not a rate or a count."""
    return not metric.endswith(("_rate", "_tokens"))


def lower_is_better(metric: str) -> bool:
    """Return whether a lower value of a metric is better."""
    return metric in _LOWER_IS_BETTER


def read_evaluations(sources: Sequence[LabelledCells]) -> Evaluations:
    """Read the complete cells below folders, which may be whole stores.

    Raises:
        UserError: a folder does not exist, a file is damaged, no folder has a complete cell, or two
            different cells have the same model, task and metric.
    """
    files = ArtifactFiles()
    notes: list[str] = []
    by_model: dict[str, dict[tuple[str, int | None, str | None], list[CellEntry]]] = {}
    for source in sources:
        entries, missing = read_source(source, source.folder, files)
        notes += missing
        notes += _unfinished(source.folder)
        for entry in entries:
            cell = entry.cell
            if cell.incomplete is not None:
                notes.append(f"{entry.path}: {cell.task} {cell.metric}: {cell.incomplete}")
                continue
            tasks = by_model.setdefault(_model_name(entry), {})
            key = (cell.task, cell.context_tokens, cell.settings.get("scorer"))
            _add(tasks.setdefault(key, []), entry)
    if not by_model:
        raise UserError(
            "there are no finished cells to export: "
            + "; ".join(notes or [str(source.folder) for source in sources]),
            hint="Give folders that `amnesia eval niah`, `score` or `check` wrote, or a store.",
        )
    models = tuple(_model(name, tasks) for name, tasks in sorted(by_model.items()))
    return Evaluations(models=models, notes=tuple(dict.fromkeys(notes)))


def _unfinished(folder: Path) -> Iterator[str]:
    """Yield a note on each evaluation that has answers but is not finished."""
    for path in sorted(folder.rglob(".*.parts")):
        if any(path.rglob("generations.jsonl")):
            yield f"{path.parent / path.name[1:].removesuffix('.parts')}: is not finished"


def _model_name(entry: CellEntry) -> str:
    return "/".join(part for part in (entry.model, entry.method, entry.seed) if part)


def _add(entries: list[CellEntry], new: CellEntry) -> None:
    for known in entries:
        if known.cell.metric == new.cell.metric:
            if known.cell != new.cell:
                raise UserError(
                    f"two cells for {_model_name(new)}, {new.cell.task} {new.cell.metric}:\n"
                    f"  {known.path}\n  {new.path}",
                    hint="Give only one of them, or label them: MODEL/METHOD/SEED=DIR.",
                )
            return
    entries.append(new)


def _model(
    name: str, tasks: Mapping[tuple[str, int | None, str | None], Sequence[CellEntry]]
) -> EvaluatedModel:
    cells = [entry.cell for entries in tasks.values() for entry in entries]
    identities = {p.identity for c in cells for p in c.parents if p.role == "checkpoint"}
    return EvaluatedModel(
        name=name,
        checkpoint=identities.pop() if len(identities) == 1 else None,
        tasks=tuple(
            EvaluatedTask(
                task=task,
                context_tokens=context_tokens,
                scorer=scorer,
                cells=tuple(entry.cell for entry in entries),
                samples=_samples(entries),
                date=_ended(entries[0]),
            )
            for (task, context_tokens, scorer), entries in sorted(
                tasks.items(), key=lambda item: tuple(str(part or "") for part in item[0])
            )
        ),
    )


def _ended(entry: CellEntry) -> str | None:
    if entry.artifact is None:
        return None
    return entry.files.manifest(entry.artifact).provenance.ended


def _samples(entries: Sequence[CellEntry]) -> tuple[ExportedSample, ...]:
    first = entries[0]
    if first.cell.context_tokens is not None:
        return tuple(_recall_samples(first))
    return tuple(_reasoning_samples(first))


def _recall_samples(entry: CellEntry) -> Iterator[ExportedSample]:
    prompts = prompts_identity(entry.cell) or "unknown prompts"
    for sample in recall_samples_of(entry):
        depth = sample.depth_percent
        yield ExportedSample(
            doc=sample.key.doc,
            texts=(sample.text,),
            answers=(sample.text.strip(),),
            correct=(sample.correct,),
            reference=", ".join(sample.values),
            values={entry.cell.metric: sample.score},
            details={
                "prompts": prompts,
                "context_tokens": str(sample.context_tokens),
                **({} if depth is None else {"depth_percent": str(depth)}),
                "prompt_tokens": str(sample.prompt_tokens),
                "finish_reason": sample.finish_reason.value,
            },
        )


def _reasoning_samples(entry: CellEntry) -> Iterator[ExportedSample]:
    verdicts: dict[int, list[Verdict]] = {}
    for verdict in _records(entry, Verdict, VERDICTS):
        verdicts.setdefault(verdict.key.doc, []).append(verdict)
    values = {p.doc: p.values for p in _records(entry, ProblemValues, PROBLEMS)}
    generations = _generations(entry)
    problems = prompts_identity(entry.cell) or "unknown problems"
    for doc in sorted(values or verdicts):
        judged = sorted(verdicts.get(doc, ()), key=lambda verdict: verdict.key.repeat)
        answers = generations.get(doc, ())
        yield ExportedSample(
            doc=doc,
            texts=tuple(answer.text for answer in answers),
            answers=tuple(verdict.answer for verdict in judged),
            correct=tuple(verdict.outcome is Outcome.CORRECT for verdict in judged),
            reference=None,
            values=values.get(doc, {}),
            tokens=_tokens(answers),
            details={"problems": problems},
        )


def _tokens(answers: Sequence[Generation]) -> tuple[int, int] | None:
    if not answers:
        return None
    return sum(a.prompt_tokens for a in answers), sum(len(a.tokens) for a in answers)


def _records(entry: CellEntry, kind: type[Record], name: str) -> tuple[Record, ...]:
    return entry.files.records(kind, entry.path.with_name(name), entry.artifact)


def _generations(entry: CellEntry) -> dict[int, tuple[Generation, ...]]:
    """Return the answers to each problem; empty if their file is gone or has changed."""
    parent = next((p for p in entry.cell.parents if p.role == "generations"), None)
    if parent is None or not (path := Path(parent.location)).is_file():
        return {}
    if parent.identity != f"sha256:{sha256_of(path)}":
        return {}
    answers: dict[int, list[Generation]] = {}
    for number, row in read_json_rows(path, _ABANDONED):
        line = row if isinstance(row, dict) else {}
        answer = codec.from_json(Generation, line.get("generation"), f"{path}, line {number}")
        answers.setdefault(answer.key.doc, []).append(answer)
    return {
        doc: tuple(sorted(found, key=lambda answer: answer.key.repeat))
        for doc, found in answers.items()
    }
