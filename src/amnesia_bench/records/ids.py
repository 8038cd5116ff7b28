"""The ids of tasks, metrics, scorers and methods: cells carry them, tables ask for them.

Evaluators write cells under these ids, configs of reports and experiments name them; an id that is
not here is refused where a config is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Literal, NamedTuple

# The rows of the paper's tables: `post` is the fine-tune, `restored` it with the experiment's
# restore variant, `qk_frozen` a fine-tune of its own; the others are restore variants by name.
Method = Literal["pre", "post", "restored", "qk_pro", "q", "k", "v", "qk_frozen"]
BEFORE_SFT, AFTER_SFT = "pre", "post"

RECALL_TASKS = ("niah_single_1", "niah_single_2", "niah_single_3")
RECALL_METRIC = "recall"


class Reducer(Enum):
    """How the verdicts on a problem's k answers become one number.

    `AVERAGE`: the share that is right. `MAJORITY`: whether the answer with most votes is right.
    `PASS`: the chance that of some of them at least one is right.
    """

    AVERAGE = "avg"
    MAJORITY = "maj"
    PASS = "pass"


class ReasoningIds(NamedTuple):
    """What a reasoning task is measured by.

    Attributes:
        scorers: the first is the default, and the one compared with the paper.
        reducers: which numbers are reported.
        average: the benchmark's own name of the average where each problem is answered once.
    """

    scorers: tuple[str, ...]
    reducers: tuple[Reducer, ...]
    average: str | None = None


_MATHEMATICAL = ReasoningIds(
    scorers=("strict", "flexible"), reducers=(Reducer.AVERAGE, Reducer.MAJORITY, Reducer.PASS)
)
REASONING_TASKS: Mapping[str, ReasoningIds] = MappingProxyType(
    {
        "math500": _MATHEMATICAL,
        "gsm8k": _MATHEMATICAL,
        "aime24": _MATHEMATICAL,
        "livecodebench": ReasoningIds(
            scorers=("strict", "lenient"), reducers=(Reducer.AVERAGE, Reducer.PASS)
        ),
        "ifeval": ReasoningIds(
            scorers=("strict",),
            reducers=(Reducer.AVERAGE,),
            average="prompt_level_strict_accuracy",
        ),
    }
)
_PASS_AT = (2, 4, 8, 16)


def compared_metrics(task: str, repeats: int) -> tuple[str, ...]:
    """Return the metrics that methods are compared by: their values are multiples of 1/repeats."""
    ids = REASONING_TASKS[task]
    names = []
    if Reducer.AVERAGE in ids.reducers:
        names.append(ids.average if ids.average and repeats == 1 else f"avg@{repeats}")
    if Reducer.MAJORITY in ids.reducers:
        names.append(f"maj@{repeats}")
    return tuple(names)


def reasoning_metrics(task: str, repeats: int) -> tuple[str, ...]:
    """Return a task's metrics; those that end in `_tokens` are counts, the others are shares."""
    reducers = REASONING_TASKS[task].reducers
    names = [*compared_metrics(task, repeats)]
    if Reducer.MAJORITY in reducers:
        names += [f"maj_expected@{repeats}", "no_vote_rate"]
    if Reducer.PASS in reducers:
        names += [f"pass@{k}" for k in _PASS_AT if k <= repeats]
    return (*names, "extraction_rate", "length_cut_rate", "mean_new_tokens")


def known_metrics(task: str, metric: str) -> tuple[str, ...]:
    """Return a task's metrics with as many repeats as the `@k` of a metric says, if it has one."""
    name, _, count = metric.partition("@")
    repeats = int(count) if count.isdecimal() and len(count) < 6 and int(count) else 1
    if name == Reducer.PASS.value:  # of any k up to the number of answers
        repeats = max(repeats, *_PASS_AT)
    return reasoning_metrics(task, repeats)
