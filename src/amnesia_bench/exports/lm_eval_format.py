"""The files of lm-evaluation-harness 0.4.13: results_DATE.json and samples_TASK_DATE.jsonl.

As in its RULER tasks, the metrics of a recall task are its context lengths. A filter is a scorer.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from amnesia_bench import __version__
from amnesia_bench.exports.evaluations import (
    EvaluatedModel,
    EvaluatedTask,
    ExportedSample,
    lower_is_better,
)
from amnesia_bench.records.evaluation import Cell

_NO_DATE = "1970-01-01T00:00:00.000+00:00"  # of cells outside a finished artifact


def lm_eval_files(model: EvaluatedModel) -> dict[str, str]:
    """Return the texts of a model's files by their path."""
    folder = "".join(c if c.isalnum() or c in "._-" else "__" for c in model.name)
    dates = [task.date for task in model.tasks if task.date is not None]
    date = max(dates, default=_NO_DATE)
    tasks: defaultdict[str, list[EvaluatedTask]] = defaultdict(list)
    for task in model.tasks:
        tasks[task.task].append(task)
    results = _results(model, folder, tasks) | {"date": datetime.fromisoformat(date).timestamp()}
    stamp = date.partition("+")[0].replace(":", "-")
    files = {f"{folder}/results_{stamp}.json": json.dumps(results, indent=2) + "\n"}
    for name, parts in tasks.items():
        lines = "".join(f"{json.dumps(line)}\n" for line in _samples(parts))
        if lines:
            files[f"{folder}/samples_{name}_{stamp}.jsonl"] = lines
    return files


def _results(
    model: EvaluatedModel, folder: str, tasks: Mapping[str, Sequence[EvaluatedTask]]
) -> dict[str, Any]:
    counts = {
        name: max(cell.n for part in parts for cell in part.cells) for name, parts in tasks.items()
    }
    return {
        "results": {name: _task_results(name, parts) for name, parts in tasks.items()},
        "group_subtasks": {},
        "configs": {
            name: {"task": name, "metadata": dict(parts[0].cells[0].settings)}
            for name, parts in tasks.items()
        },
        "versions": {name: "amnesia_bench" for name in tasks},
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {
            name: {
                _metric(part, cell): not lower_is_better(cell.metric)
                for part in parts
                for cell in part.cells
            }
            for name, parts in tasks.items()
        },
        "n-samples": {name: {"original": n, "effective": n} for name, n in counts.items()},
        "config": {"model": "amnesia_bench", "model_args": {"checkpoint": model.checkpoint}},
        "model_source": "amnesia_bench",
        "model_name": model.name,
        "model_name_sanitized": folder,
        "amnesia_bench": {"version": __version__, "cells": _cells(tasks)},
    }


def _task_results(name: str, parts: Sequence[EvaluatedTask]) -> dict[str, Any]:
    values: dict[str, Any] = {"alias": name}
    for part in parts:
        for cell in part.cells:
            metric, filter_name = _metric(part, cell), _filter(part)
            values[f"{metric},{filter_name}"] = cell.value
            values[f"{metric}_stderr,{filter_name}"] = "N/A" if cell.stderr is None else cell.stderr
    return values


def _cells(tasks: Mapping[str, Sequence[EvaluatedTask]]) -> dict[str, Any]:
    """Return the n, repeats and interval of each value, for which lm-eval has no place."""
    return {
        f"{name}/{_metric(part, cell)},{_filter(part)}": {
            "n": cell.n,
            "repeats": cell.repeats,
            "interval": None
            if cell.interval is None
            else {
                "low": cell.interval.low,
                "high": cell.interval.high,
                "level": cell.interval.level,
                "method": cell.interval.method,
            },
        }
        for name, parts in tasks.items()
        for part in parts
        for cell in part.cells
    }


def _metric(part: EvaluatedTask, cell: Cell) -> str:
    return cell.metric if part.context_tokens is None else str(part.context_tokens)


def _filter(part: EvaluatedTask) -> str:
    return "none" if part.context_tokens is not None or part.scorer is None else part.scorer


def _samples(parts: Sequence[EvaluatedTask]) -> Iterator[dict[str, Any]]:
    for part in parts:
        for sample in part.samples:
            yield _sample(part, sample)


def _sample(part: EvaluatedTask, sample: ExportedSample) -> dict[str, Any]:
    # A prompt of 256K tokens is not stored with its answers; it is identified by its prompt set.
    doc = {"index": sample.doc, **sample.details}
    metrics = {
        metric if part.context_tokens is None else str(part.context_tokens): value
        for metric, value in sample.values.items()
    }
    return {
        "doc_id": sample.doc,
        "doc": doc,
        "target": sample.reference or "",
        "arguments": {},
        "resps": [list(sample.texts)],
        "filtered_resps": [answer or "" for answer in sample.answers],
        "filter": _filter(part),
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(doc)),
        "prompt_hash": _hash(json.dumps(doc)),
        "target_hash": _hash(sample.reference or ""),
        **metrics,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
