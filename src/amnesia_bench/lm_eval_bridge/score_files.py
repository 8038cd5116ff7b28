"""Read the scores that lm-eval wrote: its result files, and the tables that it prints into logs.

`result_text` writes scores in the format of lm-eval's result files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.records.layer_ranking import RankingTask
from amnesia_bench.store.files import read_json
from amnesia_bench.store.sealed_json import sealed_text, unsealed

_TEXT_SUFFIXES = frozenset({".log", ".txt", ".md", ".out"})
# lm-eval names its result files results_TIME.json; a folder can contain other JSON files.
_RESULT_FILE = re.compile(r"results?(_.*)?\.json")
_NOT_SCORES = ("stderr", "alias", "sample_len", "name", "samples")
_NO_FILTER = "none"
_NOT_APPLICABLE = "N/A"  # lm-eval's value of a group without a mean
_TABLE_ROUNDING = 5.001e-5  # half of the last digit in a table


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One score of a task: `metric` is lm-eval's name, or a context length for RULER's tasks."""

    task: str
    metric: str
    value: float


def result_text(task: RankingTask, values: Mapping[str, float]) -> str:
    """Return a result file of lm-eval with the scores of one task, and with a checksum.

    `values` has lm-eval's names of the metrics.
    """
    scores = {f"{metric},none": value for metric, value in values.items()}
    return sealed_text(
        {
            "results": {task.name: {"alias": task.name, **scores}},
            "versions": {task.name: task.version},
            "n-samples": {task.name: {"effective": task.n}},
        }
    )


def read_scores(folder: Path) -> Mapping[str, tuple[TaskScore, ...]]:
    """Return the scores in all result files and logs in a folder, by task, in lm-eval's order.

    Scores below 0, with which lm-eval marks lengths that were not evaluated, are left out. The
    printed table of a run may be next to its result file, whose values have more digits.

    Raises:
        UserError: the folder has no scores, or two files have different values of one score.
    """
    scores: dict[str, dict[str, float]] = {}
    for path in sorted(folder.rglob("*"), key=lambda path: (path.suffix != ".json", path)):
        for score in _scores_in(path):
            if score.value < 0:
                continue
            known = scores.setdefault(score.task, {}).setdefault(score.metric, score.value)
            if abs(known - score.value) > _TABLE_ROUNDING:
                raise UserError(
                    f"{folder}: {score.task}, {score.metric} is {known} in one file and "
                    f"{score.value} in {path.name}",
                    hint="Keep only the results of one run in this folder.",
                )
    if not scores:
        raise UserError(
            f"{folder}: contains no scores of lm-eval",
            hint="Expected results_*.json, or a log (.log, .txt, .md, .out) with its table.",
        )
    return {
        task: tuple(TaskScore(task=task, metric=name, value=value) for name, value in found.items())
        for task, found in scores.items()
    }


def _scores_in(path: Path) -> Iterator[TaskScore]:
    if path.is_file() and _RESULT_FILE.fullmatch(path.name):
        yield from _result_file(path)
    elif path.is_file() and path.suffix in _TEXT_SUFFIXES:
        yield from _tables(path)


def _result_file(path: Path) -> Iterator[TaskScore]:
    content = unsealed(read_json(path), str(path), "Remove it, and evaluate the task again.")
    try:
        results = content["results"]
        found = [
            TaskScore(task=task, metric=_metric(*key.split(",", 1)), value=float(value))
            for task, values in results.items()
            for key, value in values.items()
            if not any(word in key for word in _NOT_SCORES) and not isinstance(value, str)
        ]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: is not a result file of lm-eval ({error!r})") from error
    yield from found


def _tables(path: Path) -> Iterator[TaskScore]:
    """Yield the scores in the tables of a log; a row without a task belongs to the one before."""
    columns: list[str] = []
    task = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("|"):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip().removeprefix("|").split("|")]
        if {"Metric", "Value"} <= set(cells):
            columns = cells
        elif columns and not set(line.strip()) <= set("|-: "):
            task = cells[0] or task
            value = cells[columns.index("Value")]
            if value == _NOT_APPLICABLE:
                continue
            try:
                number = float(value)
            except ValueError as error:
                raise UserError(f"{path}: {task}: its score {value!r} is not a number") from error
            filters = cells[columns.index("Filter")] if "Filter" in columns else _NO_FILTER
            metric = _metric(cells[columns.index("Metric")], filters)
            yield TaskScore(task=task, metric=metric, value=number)


def _metric(metric: str, filters: str = _NO_FILTER) -> str:
    """Return the name of a score: lm-eval may score one metric after several filters."""
    return metric if filters == _NO_FILTER else f"{metric},{filters}"
