"""The ids of tasks, metrics, scorers and methods, which cells and configs share.

Evaluations write cells with these ids, and the configs of reports and experiments refer to them. A
config with an unknown id is rejected when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Literal, NamedTuple

# The rows of the paper's tables. `pre` is the checkpoint before fine-tuning, `post` the fine-tune,
# `restored` the fine-tune after the experiment's restore variant, and `qk_frozen` a separate
# fine-tune. The other methods are restore variants.
Method = Literal["pre", "post", "restored", "qk_pro", "q", "k", "v", "qk_frozen"]
BEFORE_SFT, AFTER_SFT = "pre", "post"

RECALL_TASKS = ("niah_single_1", "niah_single_2", "niah_single_3")
RECALL_METRIC = "recall"


class Reducer(Enum):
    """How the verdicts on the k answers to a problem are reduced to one number.

    `AVERAGE` is the share of correct answers. `MAJORITY` is 1 if the answer with the most votes is
    correct, else 0. `PASS` is the probability that at least one of a given number of answers is
    correct.
    """

    AVERAGE = "avg"
    MAJORITY = "maj"
    PASS = "pass"


class ReasoningIds(NamedTuple):
    """The scorers and metrics of a reasoning task.

    Attributes:
        scorers: the names of the scorers. The first is the default, and its results are compared
            with the paper.
        reducers: the reducers whose values are reported.
        average: the benchmark's own name for the average over problems that are answered once;
            None if it has no such name.
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
    """Return the metrics in which methods are compared; their values are multiples of 1/repeats."""
    ids = REASONING_TASKS[task]
    names = []
    if Reducer.AVERAGE in ids.reducers:
        names.append(ids.average if ids.average and repeats == 1 else f"avg@{repeats}")
    if Reducer.MAJORITY in ids.reducers:
        names.append(f"maj@{repeats}")
    return tuple(names)


def reasoning_metrics(task: str, repeats: int) -> tuple[str, ...]:
    """Return the metrics of a task for `repeats` answers per problem.

    Metrics whose names end in `_tokens` are counts; all others are fractions.
    """
    reducers = REASONING_TASKS[task].reducers
    names = [*compared_metrics(task, repeats)]
    if Reducer.MAJORITY in reducers:
        names += [f"maj_expected@{repeats}", "no_vote_rate"]
    if Reducer.PASS in reducers:
        names += [f"pass@{k}" for k in _PASS_AT if k <= repeats]
    return (*names, "extraction_rate", "length_cut_rate", "mean_new_tokens")


def known_metrics(task: str, metric: str) -> tuple[str, ...]:
    """Return the valid metrics of a task, for checking a metric name from a config.

    The number of answers per problem is k if the name has the form `NAME@k`, and 1 otherwise.
    """
    name, _, count = metric.partition("@")
    repeats = int(count) if count.isdecimal() and len(count) < 6 and int(count) else 1
    if name == Reducer.PASS.value:  # the number of answers may exceed the k of pass@k
        repeats = max(repeats, *_PASS_AT)
    return reasoning_metrics(task, repeats)
