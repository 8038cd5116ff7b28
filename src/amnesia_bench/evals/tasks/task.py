"""What a reasoning task is made of; one module of this package per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from amnesia_bench.evals.judging import Row, Scorer


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a task's problems come from.

    `revision` is a commit of the data set on the hub. `fields` are those that are read, with
    their types; a local file must have them too. `rows` is how many problems the benchmark has.
    """

    hub_id: str
    config: str | None
    split: str
    revision: str
    fields: Mapping[str, type]
    rows: int


class Reducer(Enum):
    """How the verdicts on a problem's k answers become one number.

    `AVERAGE`: the share that is right. `MAJORITY`: whether the answer with most votes is right.
    `PASS`: the chance that of some of them at least one is right.
    """

    AVERAGE = "avg"
    MAJORITY = "maj"
    PASS = "pass"


@dataclass(frozen=True, kw_only=True)
class ReasoningTask:
    """A benchmark: its problems, how they are asked, how answers are judged and summed up.

    How answers are drawn (repeats, sampling, template) is config: `configs/eval/<name>.yaml`.

    Attributes:
        message: the user's message for a problem.
        scorers: by name; the first is the default, and the one compared with the paper.
        reducers: which numbers are reported.
        metric: the benchmark's own name of the average where each problem is answered once.
    """

    name: str
    source: Source
    message: Callable[[Row], str]
    scorers: Mapping[str, Scorer]
    reducers: tuple[Reducer, ...]
    metric: str | None = None
