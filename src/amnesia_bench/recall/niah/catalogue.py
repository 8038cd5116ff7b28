"""All of RULER's tasks, by the names that they have in lm-evaluation-harness 0.4.13."""

from __future__ import annotations

from dataclasses import replace

from amnesia_bench.config.messages import nearest
from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah.frequencies import CODED_WORDS_TASK, COMMON_WORDS_TASK
from amnesia_bench.recall.niah.needles import NEEDLE_TASKS
from amnesia_bench.recall.niah.questions import HOTPOT_TASK, SQUAD_TASK
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING, SINGLE_TASKS, RecallTask
from amnesia_bench.recall.niah.tracking import TRACKING_TASK
from amnesia_bench.records.evaluation import Sampling

TASKS = {
    task.name: task
    for task in (
        *SINGLE_TASKS.values(),
        *NEEDLE_TASKS,
        TRACKING_TASK,
        COMMON_WORDS_TASK,
        CODED_WORDS_TASK,
        SQUAD_TASK,
        HOTPOT_TASK,
    )
}


def find_task(name: str) -> RecallTask:
    """Return a task by its name.

    Raises:
        UserError: the task does not exist.
    """
    if name not in TASKS:
        endings = [task for task in TASKS if name and task.endswith(f"_{name}")]
        hint = nearest(name, list(TASKS))
        if endings and not hint.startswith("Did you mean"):
            hint = f"Did you mean {endings[0]}? {hint}"
        raise UserError(f"no task {name!r}", hint=hint)
    return TASKS[name]


def haystack_kind(task: RecallTask) -> str:
    """Return the kind of text that a task's prompts share: essays, lines, noise, or "" for none."""
    if task.essays:
        return "essays"
    if task.name in SINGLE_TASKS:
        return "lines"
    return "noise" if task is TRACKING_TASK else ""


def task_sampling(name: str, sampling: Sampling) -> Sampling:
    """Return the sampling parameters of a task.

    The tasks whose answers lm-eval limits to fewer tokens than those of the NIAH tasks keep their
    limit, if it is smaller than that of `sampling`.
    """
    limit = find_task(name).answer_tokens
    if limit >= NIAH_SAMPLING.max_new_tokens:
        return sampling
    return replace(sampling, max_new_tokens=min(limit, sampling.max_new_tokens))
