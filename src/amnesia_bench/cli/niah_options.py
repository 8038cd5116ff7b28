"""What several commands ask about NIAH in the same words."""

from __future__ import annotations

from amnesia_bench.errors import UserError

TASKS = "niah_single_1,niah_single_2,niah_single_3"


def tasks_of(typed: str) -> tuple[str, ...]:
    """Return the tasks of `--tasks`, each once.

    Raises:
        UserError: one is not known.
    """
    from amnesia_bench.config.messages import nearest
    from amnesia_bench.evals.niah.tasks import TASKS as KNOWN

    tasks = tuple(dict.fromkeys(task.strip() for task in typed.split(",")))
    for task in tasks:
        if task not in KNOWN:
            raise UserError(f"--tasks: no task {task!r}", hint=nearest(task, list(KNOWN)))
    return tasks


def lengths_of(typed: str) -> tuple[int, ...]:
    """Return the lengths of `--lengths` in tokens, each once.

    Raises:
        UserError: it is no list of positive whole numbers.
    """
    parts = [part.strip() for part in typed.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(
            f"--lengths {typed!r}: not a list of lengths in tokens", hint="--lengths 32768,262144"
        )
    return tuple(dict.fromkeys(map(int, parts)))
