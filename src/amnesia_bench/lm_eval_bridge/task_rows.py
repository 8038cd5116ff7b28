"""Read the rows of a task from the hub, from the store, or from a user's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.hub.fetched import find_fetched
from amnesia_bench.lm_eval_bridge.task_sources import HUB_TASKS, task_selection
from amnesia_bench.store.json_rows import read_json_rows

Rows = Sequence[Mapping[str, Any]]


def task_rows(task: str, file: Path | None) -> tuple[Rows, str]:
    """Return the rows of a task of `HUB_TASKS`, and their origin.

    Args:
        task: the name of the task.
        file: the user's file with the rows, as JSON Lines; None reads the data set that
            `amnesia fetch` put into the store, or downloads it.

    Raises:
        UserError: the file is missing, or a row lacks a field.
        MissingEnvironmentError: the download failed.
    """
    return _hub_rows(task) if file is None else _file_rows(task, file)


def download_failed(name: str, error: Exception) -> MissingEnvironmentError:
    """Return the error for data that cannot be downloaded."""
    reason = str(error).partition("\n")[0]
    return MissingEnvironmentError(
        f"{name} cannot be downloaded ({reason})",
        hint="On a machine without network use your own files (--data, see --help); for an "
        "experiment, `amnesia fetch` on a machine with a network.",
    )


def _hub_rows(task: str) -> tuple[Rows, str]:
    """Return the rows of a task's data set on the hub, and its name with the commit."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    source, fetched = HUB_TASKS[task], find_fetched(task_selection(task))
    dataset, subset, split = source.dataset, source.subset, source.split
    try:
        if fetched is not None:
            commit = fetched.record.commit
            # Streamed, because `datasets` caches by the name of the folder and the card, which two
            # data sets in the store may have in common.
            loaded = load_dataset(str(fetched.folder), subset, split=split, streaming=True)
        else:
            commit = HfApi().dataset_info(dataset).sha
            loaded = load_dataset(dataset, subset, split=split, revision=commit)
        rows = [{field: row[field] for field in source.fields} for row in loaded]
    except (OSError, ValueError) as error:
        raise download_failed(dataset, error) from error
    return rows, f"hub:{dataset}@{commit}"


def _file_rows(task: str, path: Path) -> tuple[Rows, str]:
    source = HUB_TASKS[task]
    hint = (
        f"It should hold the rows of {source.dataset} ({source.split}), one JSON object per line."
    )
    rows = []
    for number, row in read_json_rows(path, hint):
        if not isinstance(row, dict) or not set(source.fields) <= row.keys():
            fields = " and ".join(source.fields)
            raise UserError(f"{path}:{number}: not an object with {fields}", hint=hint)
        rows.append({field: row[field] for field in source.fields})
    if not rows:
        raise UserError(f"{path}: holds no rows", hint=hint)
    return rows, f"file:{path.name}"
