"""The commonsense tasks of lm-eval that select layers: ARC-Challenge, ARC-Easy and HellaSwag.

A task is multiple choice, zero-shot: the answer with the highest log-likelihood counts. `acc` takes
it as it is, `acc_norm` divides it by the length of the answer in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
from datasets import Dataset
from lm_eval.tasks._yaml_loader import load_yaml

from amnesia_bench.errors import UserError
from amnesia_bench.lm_eval_bridge.niah_task import build_task
from amnesia_bench.lm_eval_bridge.task_rows import task_rows
from amnesia_bench.lm_eval_bridge.task_sources import HUB_TASKS
from amnesia_bench.lm_eval_bridge.zero_shot import ZeroShotTask, sha256_of_documents

# lm-eval's task files. lm-eval's own index of names would read thousands of files.
TASK_FILES = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
}
_METRICS = ("acc", "acc_norm")


def load_commonsense_tasks(
    names: Sequence[str], files: Mapping[str, Path]
) -> tuple[ZeroShotTask, ...]:
    """Load commonsense tasks with all their documents.

    Args:
        names: task names, each a key of `TASK_FILES`.
        files: your own file of a task, by its name: JSON Lines with the fields of the data set. The
            documents of other tasks are downloaded.

    Raises:
        UserError: a file is missing, or its rows do not fit the task.
        MissingEnvironmentError: the download failed.
    """
    return tuple(_load(name, files.get(name)) for name in names)


def task_file(name: str) -> dict[str, Any]:
    """Return the contents of the task file of a commonsense task."""
    path = Path(lm_eval.__file__).parent / "tasks" / TASK_FILES[name]
    config: dict[str, Any] = load_yaml(path, resolve_func=True)
    # `tag` is a label for lm-eval's task index, not a field of a task.
    config.pop("tag", None)
    return config


def _load(name: str, file: Path | None) -> ZeroShotTask:
    rows, source = task_rows(name, file)
    config = task_file(name)
    # Only the evaluated split has documents, so that none are kept for few-shot examples.
    splits = dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split"))
    splits["test_split"] = HUB_TASKS[name].split
    dataset = {HUB_TASKS[name].split: Dataset.from_list([dict(row) for row in rows])}
    config |= {**splits, "custom_dataset": lambda **_: dataset, "fewshot_config": {"samples": []}}
    try:
        task = build_task(config)
        for document in task.test_docs():
            task.doc_to_target(document)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{source}: its rows do not fit lm-eval's task {name} ({error!r})",
            hint=f"They should be those of {HUB_TASKS[name].dataset}.",
        ) from error
    return ZeroShotTask(
        name=name,
        version=str(config["metadata"]["version"]),
        metrics={metric: metric for metric in _METRICS},
        source=source,
        sha256=sha256_of_documents(rows),
        num_documents=len(rows),
        task=task,
    )
