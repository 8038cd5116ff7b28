"""The reasoning tasks by name; a new task needs a module here and an entry in `TASKS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from amnesia_bench.config.eval_schema import EvalConfig
from amnesia_bench.config.load import load_option
from amnesia_bench.config.messages import nearest
from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.task import ReasoningTask
from amnesia_bench.reasoning.tasks.ifeval import IFEVAL
from amnesia_bench.reasoning.tasks.livecodebench import LIVECODEBENCH
from amnesia_bench.reasoning.tasks.mathematics import AIME24, GSM8K, MATH500

TASKS: Mapping[str, ReasoningTask] = MappingProxyType(
    {task.name: task for task in (MATH500, GSM8K, AIME24, LIVECODEBENCH, IFEVAL)}
)


def task_named(name: str) -> ReasoningTask:
    """Return the task with the given name.

    Raises:
        UserError: there is no such task.
    """
    if name not in TASKS:
        raise UserError(f"task {name}: no such task", hint=nearest(name, list(TASKS)))
    return TASKS[name]


def load_eval(task: str, overrides: Sequence[str] = ()) -> EvalConfig:
    """Load `configs/eval/TASK.yaml`, the config that sets how a benchmark's answers are sampled.

    Raises:
        UserError: there is no such task, or an override is wrong.
    """
    return load_option("eval", task, overrides, task_named(task).config)
