"""The retrieval tasks of lm-eval that rank and select layers: FDA, SWDE and Ruler-QA-SQuAD.

The documents are downloaded, or read from files: those of FDA and SWDE are JSON Lines with the
fields `text` and `value`, and that of Ruler-QA-SQuAD is in SQuAD's own format. FDA and SWDE are
version 1 of lm-eval's tasks, which strips prompts and values; numbers that were published before
June 2026 are from version 0.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from amnesia_bench.errors import UserError
from amnesia_bench.hub.fetched import find_fetched
from amnesia_bench.lm_eval_bridge.niah_task import build_task, task_config
from amnesia_bench.lm_eval_bridge.task_rows import download_failed, task_rows
from amnesia_bench.lm_eval_bridge.task_sources import SQUAD, SQUAD_FILE, task_selection
from amnesia_bench.lm_eval_bridge.zero_shot import ZeroShotTask, sha256_of_documents
from amnesia_bench.recall.niah.tasks import SEED
from amnesia_bench.store.files import read_json

# RULER's own metric is the best match with any gold answer; lm-eval's is the mean over all of them.
SQUAD_MAX = "ruler_qa_squad_max"
_SQUAD_TOKENS = 4096
_SQUAD_QUESTIONS = 500


def files_in(folder: Path | None) -> Mapping[str, Path]:
    """Return the files in a user's folder by task: fda.jsonl, swde.jsonl and dev-v2.0.json."""
    if folder is None:
        return {}
    names = {"fda": "fda.jsonl", "swde": "swde.jsonl", SQUAD: SQUAD_FILE}
    return {task: folder / name for task, name in names.items()}


def load_retrieval_tasks(
    names: Sequence[str], tokenizer: Any, files: Mapping[str, Path]
) -> tuple[ZeroShotTask, ...]:
    """Load retrieval tasks with all their documents.

    Args:
        names: task names, each one of fda, swde and ruler_qa_squad.
        tokenizer: the tokenizer with which the prompts of Ruler-QA-SQuAD are built for 4096 tokens.
        files: your own file of a task, by its name; the documents of other tasks are downloaded.

    Raises:
        UserError: a task is unknown, or a file is missing or in the wrong format.
        MissingEnvironmentError: the download failed.
    """
    loaders: Mapping[str, Callable[[], ZeroShotTask]] = {
        "fda": lambda: _extraction("fda", files.get("fda")),
        "swde": lambda: _extraction("swde", files.get("swde")),
        SQUAD: lambda: _squad(tokenizer, files.get(SQUAD)),
    }
    if unknown := [name for name in names if name not in loaders]:
        raise UserError(f"--tasks: no task {unknown[0]!r}", hint=f"Known: {', '.join(loaders)}.")
    return tuple(loaders[name]() for name in names)


def _extraction(name: str, file: Path | None) -> ZeroShotTask:
    from lm_eval.tasks.fda.task import FDA
    from lm_eval.tasks.swde.task import SWDE

    rows, source = task_rows(name, file)
    rows = [{field: str(value) for field, value in row.items()} for row in rows]
    base: Any = {"fda": FDA, "swde": SWDE}[name]

    class WithRows(base):  # type: ignore[misc]
        def download(self, *_: Any, **__: Any) -> None:
            self.dataset = {"validation": Dataset.from_list(list(rows))}

    task = WithRows()
    task.set_config("task", name)
    return ZeroShotTask(
        name=name,
        version=str(base.VERSION),
        metrics={"contains": name},
        source=source,
        sha256=sha256_of_documents(rows),
        num_documents=len(rows),
        task=task,
    )


def _squad(tokenizer: Any, file: Path | None) -> ZeroShotTask:
    from lm_eval.tasks.ruler import common_utils, qa_utils

    questions, texts, source = _squad_questions(qa_utils, file)
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
    return ZeroShotTask(
        name=SQUAD,
        version=str(config["metadata"]["version"]),
        metrics={metric: SQUAD, best: SQUAD_MAX},
        source=source,
        sha256=sha256_of_documents(documents),
        num_documents=len(documents),
        task=build_task(config),
    )


def _squad_questions(
    qa_utils: Any, file: Path | None
) -> tuple[list[dict[str, Any]], list[str], str]:
    """Return SQuAD's questions and texts, as read by lm-eval, and their origin."""
    source = f"rajpurkar.github.io/{SQUAD_FILE}"
    if file is not None:
        path, source = file, f"file:{file.name}"
    elif (fetched := find_fetched(task_selection(SQUAD))) is not None:
        path = fetched.folder / SQUAD_FILE
    else:
        try:
            questions, texts = qa_utils.read_squad()
        except OSError as error:
            raise download_failed(SQUAD_FILE, error) from error
        return questions, list(texts), source
    squad = read_json(path)
    # lm-eval's reader accepts only a URL, and downloads it with this function.
    download, qa_utils.download_json = qa_utils.download_json, lambda _: squad
    try:
        questions, texts = qa_utils.read_squad.__wrapped__(str(path))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not in the format of SQuAD's {SQUAD_FILE} ({error!r})") from error
    finally:
        qa_utils.download_json = download
    if not questions:
        raise UserError(f"{path}: contains no question with an answer")
    return questions, texts, source
