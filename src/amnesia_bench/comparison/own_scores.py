"""Read the scores per sample of evaluations by this package: recall and reasoning."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.comparison.score_log import MetricKey, ScoredSample, ScoreLog, series_of
from amnesia_bench.errors import UserError
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.records.ids import REASONING_TASKS, RECALL_METRIC, compared_metrics
from amnesia_bench.reporting.answers import answers_of
from amnesia_bench.reporting.artifact_files import ArtifactFiles
from amnesia_bench.reporting.sources import ANSWERS, CellEntry, read_source
from amnesia_bench.requests.experiments import LabelledCells
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.problem_values import read_problems


def read_own_scores(folder: Path) -> ScoreLog:
    """Read the cells of one model below a folder, with the scores that they summarise.

    Raises:
        UserError: a cell is incomplete, its answers changed after scoring, the folder contains the
            same cell of two models, or a file is damaged.
    """
    entries, notes = read_source(LabelledCells(folder=folder), folder, ArtifactFiles())
    if not entries:
        raise UserError("; ".join(notes), hint=f"amnesia score {folder}")
    series = {}
    paths: dict[MetricKey, Path] = {}
    for entry in entries:
        cell = entry.cell
        if cell.incomplete is not None:
            raise UserError(
                f"{entry.path}: cannot compare an incomplete run: {cell.incomplete}",
                hint="Run the same evaluation again: it answers only what is missing.",
            )
        if not _is_compared(cell):
            continue
        key = _key(cell)
        if key in paths:
            raise UserError(
                f"two evaluations of {key}:\n  {paths[key]}\n  {entry.path}",
                hint="Pass the folder of one of them.",
            )
        paths[key] = entry.path
        if cell.context_tokens is None:
            read_problems(entry.path.parent, [cell])  # checks the file
            _check_answers(entry)
        scores = answers_of(entry)
        if not scores:
            raise UserError(
                f"{entry.path}: the scores per sample next to it are missing",
                hint="Evaluate or score again: amnesia eval niah, or amnesia score FOLDER",
            )
        series[key] = series_of(
            (
                ScoredSample(
                    key=f"{identity}/{doc}", name=f"doc {doc}", prompt=identity, score=score
                )
                for (_, identity, doc), score in scores.items()
            ),
            higher_is_better=True,
        )
    return ScoreLog(
        format="amnesia_bench", files=tuple(dict.fromkeys(paths.values())), series=series
    )


def _is_compared(cell: Cell) -> bool:
    if cell.task in REASONING_TASKS:
        return cell.metric in compared_metrics(cell.task, cell.repeats)
    return cell.metric == RECALL_METRIC


def _key(cell: Cell) -> MetricKey:
    length = "" if cell.context_tokens is None else f"@{cell.context_tokens}"
    return MetricKey(f"{cell.task}{length}", cell.metric, cell.settings.get("scorer", "none"))


def _check_answers(entry: CellEntry) -> None:
    """Check that the answers to a benchmark, where they still exist, are those that were scored."""
    scored = next((p.identity for p in entry.cell.parents if p.role == "generations"), None)
    answers = entry.path.parent.parent / ANSWERS
    if scored is None or not answers.is_file():
        return
    if scored != f"sha256:{sha256_of(answers)}":
        raise UserError(
            f"{answers.parent}: the answers changed since they were scored",
            hint=f"amnesia score {answers.parent}",
        )
