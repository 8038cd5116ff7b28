"""The `.eval_results/*.yaml` files of model repositories on the Hugging Face hub.

The hub accepts registered benchmarks only. Of ours, these are the problems of openai/gsm8k; scores
on generated or own problems, and recall, are left out.
Source: https://huggingface.co/docs/hub/eval-results
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from amnesia_bench.exports.evaluations import EvaluatedModel, EvaluatedTask
from amnesia_bench.records.evaluation import Cell

# For each task that the hub has registered: the data set, and the task's id there.
_REGISTERED: Mapping[str, tuple[str, str]] = {"gsm8k": ("openai/gsm8k", "gsm8k")}
_SCORER = "strict"


def eval_results_files(model: EvaluatedModel) -> tuple[dict[str, str], list[str]]:
    """Return the texts of a model's files by their path, and notes on what was left out."""
    folder = "".join(c if c.isalnum() or c in "._-" else "__" for c in model.name)
    files: dict[str, str] = {}
    notes: list[str] = []
    for task in model.tasks:
        reason = _reason_against(task)
        if reason is not None:
            notes.append(f"{model.name}, {task.name}: left out, {reason}")
            continue
        files[f"{folder}/.eval_results/{task.task}.yaml"] = _yaml(task, _main_cell(task))
    return files, notes


def _main_cell(task: EvaluatedTask) -> Cell:
    """Return the cell of the mean accuracy, which every scored task has."""
    return next(cell for cell in task.cells if cell.metric.startswith("avg@"))


def _reason_against(task: EvaluatedTask) -> str | None:
    if task.task not in _REGISTERED:
        return "its benchmark is not registered on the hub"
    if task.scorer != _SCORER:
        return f"the scorer {task.scorer} is not the benchmark's"
    repository, _ = _REGISTERED[task.task]
    cell = task.cells[0]
    problems = next((p.location for p in cell.parents if p.role == "problems"), "")
    if not problems.startswith(f"{repository}@"):
        return f"the problems are not those of {repository}"
    if cell.settings.get("documents") != cell.settings.get("benchmark_documents"):
        return "only a part of the problems was answered"
    return None


def _yaml(task: EvaluatedTask, cell: Cell) -> str:
    repository, task_id = _REGISTERED[task.task]
    assert cell.value is not None
    revision = next(p.location for p in cell.parents if p.role == "problems").partition("@")[2]
    notes = [f"mean accuracy over {cell.repeats} answers per problem", f"n = {cell.n} problems"]
    if (interval := cell.interval) is not None:
        ends = f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        notes.append(f"{100 * interval.level:.0f} % interval {ends} ({interval.method})")
    notes += [
        f"{name} {cell.settings[name]}"
        for name in ("temperature", "top_p", "max_new_tokens")
        if name in cell.settings
    ]
    lines = [
        "- dataset:",
        f"    id: {repository}",
        f"    task_id: {task_id}",
        f"    revision: {json.dumps(revision)}",
        f"  value: {round(100 * cell.value, 4)}",
        # A JSON string is a YAML string.
        *([] if task.date is None else [f"  date: {json.dumps(task.date)}"]),
        f"  notes: {json.dumps('; '.join(notes))}",
    ]
    return "\n".join(lines) + "\n"
