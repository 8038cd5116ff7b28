"""Records of Every Eval Ever, schema 0.3.0: one file per model and task, and one of its samples.

Source: https://github.com/evaleval/every_eval_ever (schemas/eval.schema.json and
instance_level_eval.schema.json)
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from amnesia_bench import __version__
from amnesia_bench.exports.evaluations import (
    EvaluatedModel,
    EvaluatedTask,
    ExportedSample,
    is_accuracy,
    lower_is_better,
)
from amnesia_bench.records.evaluation import Cell

SCHEMA_VERSION = "0.3.0"
_COLLECTION = "amnesia_bench"
_NO_DEVELOPER = "unknown"


def every_eval_ever_files(model: EvaluatedModel) -> dict[str, str]:
    """Return the texts of a model's files by their path, in the layout of the public collection."""
    files: dict[str, str] = {}
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", model.name)
    folder = f"data/{_COLLECTION}/{_NO_DEVELOPER}/{name}"
    for task in model.tasks:
        content = json.dumps([model.name, task.name, task.scorer, repr(task.cells)])
        digest = hashlib.sha256(content.encode()).hexdigest()
        # The collection asks for random UUIDs; this one is the same for the same evaluation.
        stem = f"{folder}/{uuid.UUID(digest[:32], version=4)}"
        evaluation_id = f"{task.name}/{model.name}/{_unix_time(task.date)}"
        samples = "".join(
            f"{json.dumps(line)}\n"
            for sample in task.samples
            for line in _instances(model, task, sample, evaluation_id)
        )
        record = _record(model, task, evaluation_id)
        if samples:
            path = f"{stem}_samples.jsonl"
            files[path] = samples
            record["detailed_evaluation_results"] = {
                "format": "jsonl",
                "file_path": path,
                "hash_algorithm": "sha256",
                "checksum": hashlib.sha256(samples.encode()).hexdigest(),
                "total_rows": samples.count("\n"),
            }
        files[f"{stem}.json"] = json.dumps(record, indent=2) + "\n"
    return files


def _unix_time(date: str | None) -> str:
    return "0" if date is None else str(int(datetime.fromisoformat(date).timestamp()))


def _record(model: EvaluatedModel, task: EvaluatedTask, evaluation_id: str) -> dict[str, Any]:
    settings = task.cells[0].settings
    engine = {"name": settings.get("engine", "unknown")}
    if (version := settings.get(engine["name"])) is not None:
        engine["version"] = version
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": evaluation_id,
        "retrieved_timestamp": _unix_time(task.date),
        "source_metadata": {
            "source_name": "amnesia_bench",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "amnesia_bench", "version": __version__},
        "model_info": {
            "name": model.name,
            "id": model.name,
            "inference_engine": engine,
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "unknown",
                "checkpoint": model.checkpoint or "unknown",
            },
        },
        "evaluation_results": [_result(task, cell) for cell in task.cells],
    }


def _result(task: EvaluatedTask, cell: Cell) -> dict[str, Any]:
    is_count = cell.metric.endswith("_tokens")
    uncertainty: dict[str, Any] = {"num_samples": cell.n}
    if cell.stderr is not None:
        uncertainty["standard_error"] = {"value": cell.stderr}
    if (interval := cell.interval) is not None:
        uncertainty["confidence_interval"] = {
            "lower": interval.low,
            "upper": interval.high,
            "confidence_level": interval.level,
            "method": interval.method,
        }
    return {
        "evaluation_result_id": _result_id(task, cell.metric),
        "evaluation_name": task.name,
        "source_data": _source_data(task, cell),
        "metric_config": {
            "evaluation_description": f"{cell.metric} of {task.name}",
            "metric_name": cell.metric,
            "metric_unit": "tokens" if is_count else "proportion",
            "lower_is_better": lower_is_better(cell.metric),
            "score_type": "continuous",
            "min_score": 0,
            "max_score": "Infinity" if is_count else 1,
            "additional_details": {"scorer": task.scorer or "unknown"},
        },
        "score_details": {
            "score": cell.value,
            "details": {"repeats": str(cell.repeats)},
            "uncertainty": uncertainty,
        },
        "generation_config": _generation_config(cell),
    }


def _result_id(task: EvaluatedTask, metric: str) -> str:
    return f"{task.name}/{metric}/{task.scorer or 'none'}"


def _source_data(task: EvaluatedTask, cell: Cell) -> dict[str, Any]:
    location = next((p.location for p in cell.parents if p.role == "problems"), "")
    repository, at, revision = location.partition("@")
    if at and re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return {
            "dataset_name": task.task,
            "source_type": "hf_dataset",
            "hf_repo": repository,
            "additional_details": {"revision": revision},
        }
    identity = next((p.identity for p in cell.parents if p.role in ("problems", "prompts")), "")
    details = {"identity": identity or "unknown"}
    return {"dataset_name": task.task, "source_type": "other", "additional_details": details}


def _generation_config(cell: Cell) -> dict[str, Any]:
    settings = cell.settings
    arguments: dict[str, Any] = {}
    for name in ("temperature", "top_p", "top_k"):
        if (text := settings.get(name)) is not None:
            arguments[name] = None if text in ("null", "None") else float(text)
    if "max_new_tokens" in settings:
        arguments["max_tokens"] = int(settings["max_new_tokens"])
    rest = {key: value for key, value in settings.items() if key not in arguments}
    return {"generation_args": arguments, "additional_details": rest}


def _instances(
    model: EvaluatedModel, task: EvaluatedTask, sample: ExportedSample, evaluation_id: str
) -> Iterator[dict[str, Any]]:
    """Yield one record per accuracy, since the schema wants one per metric, correct or not."""
    for cell in task.cells:
        value = sample.values.get(cell.metric)
        if value is None or not is_accuracy(cell.metric):
            continue
        reference = [] if sample.reference is None else [sample.reference]
        record = {
            "schema_version": SCHEMA_VERSION,
            "evaluation_id": evaluation_id,
            "model_id": model.name,
            "evaluation_name": task.name,
            "evaluation_result_id": _result_id(task, cell.metric),
            "sample_id": str(sample.doc),
            "interaction_type": "single_turn",
            # Prompts of up to 256K tokens are not stored; the details identify them.
            "input": {"raw": "", "reference": reference},
            "output": {"raw": list(sample.texts)},
            "answer_attribution": [
                {
                    "turn_idx": 0,
                    "source": "output.raw",
                    "extracted_value": answer or "",
                    "extraction_method": task.scorer or "none",
                    "is_terminal": True,
                }
                for answer in sample.answers
            ],
            "evaluation": {"score": value, "is_correct": value == 1.0},
            "metadata": dict(sample.details),
        }
        if sample.tokens is not None:
            read, written = sample.tokens
            record["token_usage"] = {
                "input_tokens": read,
                "output_tokens": written,
                "total_tokens": read + written,
            }
        yield record
