"""Show the progress of training on stderr: a bar on a terminal, or a line every 30 s in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LOG_SECONDS = 30.0


class TrainingProgress(Protocol):
    """A callback that shows the state of the run after each step."""

    def __call__(self, step: int, loss: float, tokens_per_second: float) -> None: ...


@contextmanager
def progress(title: str, steps: int, done: int) -> Iterator[TrainingProgress]:
    """Show the progress of a run of `steps` steps on stderr, starting after step `done`.

    Yields the function to call after each step.
    """
    if not sys.stderr.isatty():
        yield _log_lines(title, steps)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    text = TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} tokens/s")
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text)
    with Bar(title, *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps, completed=done, loss=float("nan"), speed=0.0)

        def show(step: int, loss: float, tokens_per_second: float) -> None:
            bar.update(task, completed=step, loss=loss, speed=tokens_per_second)

        yield show


def _log_lines(title: str, steps: int) -> TrainingProgress:
    last_logged = -LOG_SECONDS

    def show(step: int, loss: float, tokens_per_second: float) -> None:
        nonlocal last_logged
        now = time.monotonic()
        if now - last_logged >= LOG_SECONDS or step == steps:
            last_logged = now
            sys.stderr.write(
                f"{title}: step {step} of {steps}, loss {loss:.4f}, "
                f"{tokens_per_second:,.0f} tokens/s\n"
            )
            sys.stderr.flush()

    return show
