"""Read the samples that lm-evaluation-harness logs: samples_TASK_DATE.jsonl.

Format: lm-eval 0.4.13, `lm_eval.result_schema.SampleResult`. results_DATE.json in the same folder
holds the versions of the tasks and the direction of each metric. Each line is one document under
one filter. `doc_hash` identifies the document, so lines are paired by it, not by their position.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from amnesia_bench.comparison.score_log import (
    MetricKey,
    ScoredSample,
    ScoreLog,
    sample_score,
    series_of,
)
from amnesia_bench.errors import UserError
from amnesia_bench.store.files import read_json
from amnesia_bench.store.json_rows import read_json_rows

SAMPLE_LOGS = "samples_*.jsonl"
RESULTS = "results_*.json"
LOG_SAMPLES = "lm_eval ... --log_samples --output_path DIR"

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)")
_CUT_OFF = "The line is cut off or was changed: evaluate the task again."
# Settings of a run that change its prompts. The first is by task.
_PROMPT_SETTINGS = (
    "n-shot",
    "chat_template_sha",
    "system_instruction_sha",
    "fewshot_as_multiturn",
    "lm_eval_version",
)
PERPLEXITY, LOG_LIKELIHOOD = "perplexity", "log_likelihood"
# A RULER task logs -1 for every context length that is not the sample's.
_NOT_MEASURED = -1


class _Line(NamedTuple):
    """One line of a log: one document under one filter."""

    where: str
    doc_hash: str
    doc_id: int
    filter: str
    prompt: str
    values: Mapping[str, object]


def read_lm_eval_logs(files: Sequence[Path]) -> ScoreLog:
    """Read the sample logs of one evaluation, one file per task.

    Raises:
        UserError: two files are logs of the same task, a line is not a logged sample, a score is
            NaN, a file has no lines, or it holds lines of several tasks.
    """
    by_task: dict[str, Path] = {}
    for file in files:
        task = _task_of(file)
        if task in by_task:
            raise UserError(
                f"two logs of the task {task}:\n  {by_task[task]}\n  {file}",
                hint="Pass the folder or the file of one run.",
            )
        by_task[task] = file
    series, skipped, warnings = {}, [], []
    versions: dict[str, str] = {}
    settings: dict[str, dict[str, str]] = {}
    for task, file in by_task.items():
        results = _results_of(file)
        if not results:
            warnings.append(
                f"{file}: no results_DATE.json of its run is beside it, so higher scores are taken "
                "as better, and the version of the task is unknown"
            )
        likelihoods = _likelihoods(results, task)
        better = _of_task(results, "higher_is_better", task)
        better = better if isinstance(better, dict) else {}
        lines = tuple(_read_lines(file))
        names = sorted({(metric, line.filter) for line in lines for metric in line.values})
        for metric, scorer in names:
            samples, reason = _samples(lines, metric, scorer)
            if reason is not None:
                skipped.append(f"{task} {metric}: {reason}")
            else:
                name = LOG_LIKELIHOOD if metric in likelihoods else metric
                series[MetricKey(task, name, scorer)] = series_of(
                    samples,
                    higher_is_better=metric in likelihoods or better.get(metric) is not False,
                )
        version = _of_task(results, "versions", task)
        versions[task] = "unknown" if version is None else str(version)
        settings[task] = {
            name: str(_of_task(results, name, task) if name == "n-shot" else results[name])
            for name in _PROMPT_SETTINGS
            if name in results
        }
    return ScoreLog(
        format="lm-eval",
        files=tuple(by_task.values()),
        series=series,
        versions=versions,
        settings=settings,
        skipped=tuple(skipped),
        warnings=tuple(warnings),
    )


def _task_of(file: Path) -> str:
    match = _NAME.fullmatch(file.stem)
    return match["task"] if match else file.stem.removeprefix("samples_")


def _results_of(file: Path) -> Mapping[str, Any]:
    match = _NAME.fullmatch(file.stem)
    path = file.with_name(f"results_{match['date']}.json") if match else None
    content = read_json(path) if path is not None and path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _of_task(results: Mapping[str, Any], part: str, task: str) -> Any:
    by_task = results.get(part)
    return by_task.get(task) if isinstance(by_task, dict) else None


def _likelihoods(results: Mapping[str, Any], task: str) -> set[str]:
    """Return the metrics whose samples are log-likelihoods.

    For a perplexity, lm-eval logs the log-likelihood of each sample, of which higher is better, and
    says that lower is better, which is true of exp(-mean).
    """
    config = _of_task(results, "configs", task)
    metrics = config.get("metric_list") if isinstance(config, dict) else None
    aggregations = {PERPLEXITY: PERPLEXITY}
    for entry in metrics if isinstance(metrics, list) else ():
        if isinstance(entry, dict) and "aggregation" in entry:
            aggregations[str(entry.get("metric"))] = str(entry["aggregation"])
    return {metric for metric, name in aggregations.items() if name == PERPLEXITY}


def _read_lines(file: Path) -> Iterator[_Line]:
    hashes: dict[int, str] = {}
    for number, row in read_json_rows(file, _CUT_OFF):
        where = f"{file}:{number}"
        if not isinstance(row, dict) or not ("doc_hash" in row or "doc" in row):
            raise UserError(f"{where}: not a sample that lm-eval logged", hint=LOG_SAMPLES)
        metrics = row.get("metrics")
        doc_id = row.get("doc_id")
        if not isinstance(metrics, list) or not isinstance(doc_id, int):
            raise UserError(
                f"{where}: no list of metrics, or no doc_id",
                hint="Log the samples with lm-eval 0.4.9 or later: " + LOG_SAMPLES,
            )
        if missing := [metric for metric in metrics if metric not in row]:
            raise UserError(f"{where}: its score {missing[0]} is missing", hint=_CUT_OFF)
        doc_hash = str(row.get("doc_hash") or _hash(row.get("doc")))
        if hashes.setdefault(doc_id, doc_hash) != doc_hash:
            raise UserError(
                f"{where}: doc_id {doc_id} is another document than in a line before, so the file "
                "holds the lines of several tasks or versions",
                hint="Put the lines of each task into a file of their own: samples_TASK_DATE.jsonl",
            )
        yield _Line(
            where=where,
            doc_hash=doc_hash,
            doc_id=doc_id,
            filter=str(row.get("filter", "none")),
            prompt=f"{row.get('prompt_hash')}/{row.get('target_hash')}",
            values={str(metric): row[metric] for metric in metrics},
        )
    if not hashes:
        raise UserError(f"{file}: has no samples", hint=LOG_SAMPLES)


def _hash(doc: object) -> str:
    return hashlib.sha256(json.dumps(doc, sort_keys=True).encode()).hexdigest()


def _samples(
    lines: Sequence[_Line], metric: str, scorer: str
) -> tuple[list[ScoredSample], str | None]:
    """Return the samples of a metric, or the reason why it has no score per sample."""
    own = [line for line in lines if line.filter == scorer and metric in line.values]
    # A data set may contain a document twice; copies are distinguished by their order.
    copies: dict[str, list[int]] = {}
    for line in own:
        ids = copies.setdefault(line.doc_hash, [])
        if line.doc_id not in ids:
            ids.append(line.doc_id)
    samples = []
    for line in own:
        value = line.values[metric]
        if metric.isdecimal() and value == _NOT_MEASURED:
            continue
        score = sample_score(metric, value, line.where)
        if score is None:
            return [], f"is a {type(value).__name__} and not a score per sample"
        copy = sorted(copies[line.doc_hash]).index(line.doc_id)
        samples.append(
            ScoredSample(
                key=f"{line.doc_hash}#{copy}" if copy else line.doc_hash,
                name=f"doc {line.doc_id}",
                prompt=line.prompt,
                score=score,
            )
        )
    return samples, None if samples else "was measured on no sample"
