"""The data of retrieval and commonsense tasks: data sets on the hub, and a file on SQuAD's site.

This module does not import lm-eval, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from amnesia_bench.hub.fetched import HubFiles, Selection, WebFile

SQUAD = "ruler_qa_squad"
SQUAD_FILE = "dev-v2.0.json"
# The default of lm-eval's reader.
_SQUAD_URL = f"https://rajpurkar.github.io/SQuAD-explorer/dataset/{SQUAD_FILE}"


class HubTask(NamedTuple):
    """The rows of a task on the hub, as in lm-eval's task file.

    `subset` None is the only subset, and `fields` are those that the task reads.
    """

    dataset: str
    subset: str | None
    split: str
    fields: tuple[str, ...]


_ARC_FIELDS = ("question", "choices", "answerKey")
HUB_TASKS: Mapping[str, HubTask] = {
    "fda": HubTask("hazyresearch/based-fda", "default", "validation", ("text", "value")),
    "swde": HubTask("hazyresearch/based-swde-v2", "default", "validation", ("text", "value")),
    "arc_challenge": HubTask("allenai/ai2_arc", "ARC-Challenge", "test", _ARC_FIELDS),
    "arc_easy": HubTask("allenai/ai2_arc", "ARC-Easy", "test", _ARC_FIELDS),
    "hellaswag": HubTask(
        "Rowan/hellaswag",
        None,
        "validation",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    ),
}


def task_selection(task: str) -> Selection:
    """Return the files with the documents of a retrieval or commonsense task."""
    if task == SQUAD:
        return WebFile(url=_SQUAD_URL)
    source = HUB_TASKS[task]
    return HubFiles(repository=source.dataset, subsets=(source.subset,))
