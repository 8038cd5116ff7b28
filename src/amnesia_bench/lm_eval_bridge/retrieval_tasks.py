"""The lm-eval tasks for the layer ranking of Appendix M: FDA, SWDE and Ruler-QA-SQuAD.

The documents are downloaded, or read from files in a folder: `fda.jsonl` and `swde.jsonl`, whose
rows have the fields `text` and `value`, and `dev-v2.0.json`, which is in SQuAD's own format. FDA
and SWDE are version 1 of lm-eval's tasks, which strips prompts and values; numbers that were
published before June 2026 are from version 0.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
from datasets import Dataset

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.lm_eval_bridge.niah_task import build_task, task_config
from amnesia_bench.recall.niah.tasks import SEED
from amnesia_bench.records.layer_ranking import RankingTask
from amnesia_bench.store.files import read_json
from amnesia_bench.store.json_rows import read_json_rows

SQUAD = "ruler_qa_squad"
# RULER's own metric is the best match with any gold answer; lm-eval's is the mean over all of them.
SQUAD_MAX = "ruler_qa_squad_max"
_SQUAD_FILE = "dev-v2.0.json"
_SQUAD_TOKENS = 4096
_SQUAD_QUESTIONS = 500
_HUB = {"fda": "hazyresearch/based-fda", "swde": "hazyresearch/based-swde-v2"}


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """A zero-shot lm-eval task with its documents.

    `metrics` maps lm-eval's metric names to ours; the ranking uses the first one. `source` is the
    origin of the documents, and `sha256` is their hash.
    """

    name: str
    version: str
    metrics: Mapping[str, str]
    source: str
    sha256: str
    num_documents: int
    task: Any

    def evaluated_documents(self, samples: int | None) -> int:
        """Return the number of documents to evaluate: at most `samples`, or all if it is None."""
        return self.num_documents if samples is None else min(samples, self.num_documents)

    def record(self, samples: int | None) -> RankingTask:
        """Return the entry for this task in the record of a ranking."""
        return RankingTask(
            name=self.name,
            version=self.version,
            metric=next(iter(self.metrics)),
            n=self.evaluated_documents(samples),
            source=self.source,
            sha256=self.sha256,
        )


def load_retrieval_tasks(
    names: Sequence[str], tokenizer: Any, data: Path | None
) -> tuple[RetrievalTask, ...]:
    """Load retrieval tasks with all their documents.

    Args:
        names: task names, each one of fda, swde and ruler_qa_squad.
        tokenizer: the tokenizer with which the prompts of Ruler-QA-SQuAD are built for 4096 tokens.
        data: a folder with the files that the module docstring names; None downloads the documents.

    Raises:
        UserError: a task is unknown, or a file is missing or in the wrong format.
        MissingEnvironmentError: the download failed.
    """
    loaders: Mapping[str, Callable[[], RetrievalTask]] = {
        "fda": lambda: _extraction("fda", data),
        "swde": lambda: _extraction("swde", data),
        SQUAD: lambda: _squad(tokenizer, data),
    }
    if unknown := [name for name in names if name not in loaders]:
        raise UserError(f"--tasks: no task {unknown[0]!r}", hint=f"Known: {', '.join(loaders)}.")
    return tuple(loaders[name]() for name in names)


def accuracies(lm: Any, tasks: Sequence[RetrievalTask], samples: int | None) -> dict[str, float]:
    """Evaluate a model on tasks; return its accuracy by metric name, for all metrics of all tasks.

    Args:
        lm: an lm-eval model.
        tasks: the tasks to evaluate.
        samples: maximum number of documents per task, starting with the first; None for all.

    Raises:
        StageFailedError: lm-eval scored fewer documents than requested.
    """
    accuracy = {}
    for task in tasks:
        n = task.evaluated_documents(samples)
        # `evaluate_one` explains why `simple_evaluate` is not used.
        results = lm_eval.evaluate(
            lm, {"tasks": {task.name: task.task}}, limit=n, bootstrap_iters=0, log_samples=False
        )
        if (scored := results["n-samples"][task.name]["effective"]) != n:
            raise StageFailedError(f"{task.name}: lm-eval scored {scored} of {n} documents")
        for lm_eval_name, name in task.metrics.items():
            accuracy[name] = float(results["results"][task.name][f"{lm_eval_name},none"])
    return accuracy


def _extraction(name: str, data: Path | None) -> RetrievalTask:
    from lm_eval.tasks.fda.task import FDA
    from lm_eval.tasks.swde.task import SWDE

    rows, source = _hub_rows(_HUB[name]) if data is None else _file_rows(data / f"{name}.jsonl")
    base: Any = {"fda": FDA, "swde": SWDE}[name]

    class WithRows(base):  # type: ignore[misc]
        def download(self, *_: Any, **__: Any) -> None:
            self.dataset = {"validation": Dataset.from_list(list(rows))}

    task = WithRows()
    task.set_config("task", name)
    return RetrievalTask(
        name=name,
        version=str(base.VERSION),
        metrics={"contains": name},
        source=source,
        sha256=_sha256(rows),
        num_documents=len(rows),
        task=task,
    )


def _squad(tokenizer: Any, data: Path | None) -> RetrievalTask:
    from lm_eval.tasks.ruler import common_utils, qa_utils

    questions, texts, source = _squad_questions(qa_utils, data)
    state = random.getstate()
    # lm-eval seeds Python's global random generator before a task draws its documents.
    random.seed(SEED)
    documents = qa_utils.generate_samples(
        tokenizer=tokenizer,
        docs=texts,
        qas=questions,
        max_seq_length=_SQUAD_TOKENS,
        num_samples=min(_SQUAD_QUESTIONS, len(questions)),
    )
    random.setstate(state)
    metric, best = str(_SQUAD_TOKENS), "max"

    def score_document(document: dict[str, Any], answers: list[str]) -> dict[str, float]:
        score = common_utils.process_results_part(document, answers)[metric]
        (answer,) = common_utils.postprocess_pred(answers)
        matches = (gold.lower() in answer.lower() for gold in document["outputs"])
        return {metric: score, best: float(any(matches))}

    config = task_config("qa_squad")
    config.update(
        custom_dataset=lambda **_: {"test": Dataset.from_list(documents)},
        process_results=score_document,
        metric_list=[
            {
                "metric": name,
                "aggregation": common_utils.aggregate_metrics,
                "higher_is_better": True,
            }
            for name in (metric, best)
        ],
        fewshot_config={"samples": []},
    )
    return RetrievalTask(
        name=SQUAD,
        version=str(config["metadata"]["version"]),
        metrics={metric: SQUAD, best: SQUAD_MAX},
        source=source,
        sha256=_sha256(documents),
        num_documents=len(documents),
        task=build_task(config),
    )


def _hub_rows(dataset: str) -> tuple[Sequence[Mapping[str, str]], str]:
    """Return the rows of a data set on the hub, and its name with the commit."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(dataset).sha
        loaded = load_dataset(dataset, "default", split="validation", revision=commit)
    except (OSError, ValueError) as error:
        raise _download_failed(dataset, error) from error
    rows = [{"text": row["text"], "value": row["value"]} for row in loaded]
    return rows, f"hub:{dataset}@{commit}"


def _file_rows(path: Path) -> tuple[Sequence[Mapping[str, str]], str]:
    hint = f"It should hold the rows of {_HUB[path.stem]} (validation), one JSON object per line."
    rows = []
    for number, row in read_json_rows(path, hint):
        if not isinstance(row, dict) or not {"text", "value"} <= row.keys():
            raise UserError(f"{path}:{number}: not an object with text and value", hint=hint)
        rows.append({"text": str(row["text"]), "value": str(row["value"])})
    if not rows:
        raise UserError(f"{path}: holds no rows", hint=hint)
    return rows, f"file:{path.name}"


def _squad_questions(
    qa_utils: Any, data: Path | None
) -> tuple[list[dict[str, Any]], list[str], str]:
    """Return SQuAD's questions and texts, as read by lm-eval, and their origin."""
    if data is None:
        try:
            questions, texts = qa_utils.read_squad()
        except OSError as error:
            raise _download_failed(_SQUAD_FILE, error) from error
        return questions, list(texts), f"rajpurkar.github.io/{_SQUAD_FILE}"
    path = data / _SQUAD_FILE
    squad = read_json(path)
    # lm-eval's reader accepts only a URL, and downloads it with this function.
    download, qa_utils.download_json = qa_utils.download_json, lambda _: squad
    try:
        questions, texts = qa_utils.read_squad.__wrapped__(str(path))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not in the format of SQuAD's {_SQUAD_FILE} ({error!r})"
        ) from error
    finally:
        qa_utils.download_json = download
    if not questions:
        raise UserError(f"{path}: contains no question with an answer")
    return questions, texts, f"file:{path.name}"


def _download_failed(name: str, error: Exception) -> MissingEnvironmentError:
    reason = str(error).partition("\n")[0]
    return MissingEnvironmentError(
        f"{name} cannot be downloaded ({reason})",
        hint="On a machine without network use a folder: --data DIR with fda.jsonl, swde.jsonl "
        f"and {_SQUAD_FILE}.",
    )


def _sha256(documents: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()
