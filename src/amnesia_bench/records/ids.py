"""The ids of tasks, metrics, scorers and methods, which cells and configs share.

Evaluations write cells with these ids, and the configs of reports and experiments refer to them. A
config with an unknown id is rejected when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

# The rows of the paper's tables. `pre` is the checkpoint before fine-tuning, `post` the fine-tune,
# `restored` the fine-tune after the experiment's restore variant, and `qk_frozen` a separate
# fine-tune. The other methods are restore variants; those after `qk_frozen` are beyond the paper.
Method = Literal[
    "pre",
    "post",
    "restored",
    "qk_pro",
    "q",
    "k",
    "v",
    "qk_frozen",
    "wise_ft",
    "lm_cocktail",
    "step_back",
    "ties",
    "dare",
    "layer_fisher",
    "qk_blend",
    "qk_lm_cocktail",
    "qk_step_back",
    "qk_ties",
    "qk_dare",
    "qk_layer_fisher",
]
BEFORE_SFT, AFTER_SFT = "pre", "post"

# The inference engines that can answer prompts.
EngineName = Literal["transformers", "vllm"]


class RecallIds(NamedTuple):
    """The properties of a recall task that plans, estimates and scorers share.

    Attributes:
        answer_tokens: the maximum number of tokens per answer in lm-eval's task file.
        needles: the number of needles in the text that its prompts share up to the first needle; 0
            if they share no text.
        scorer: lm-eval's metric. Both give an answer the share of the values that it contains; they
            would differ for several answers to a prompt.
    """

    answer_tokens: int = 128
    needles: int = 0
    scorer: str = "string_match_all"


# RULER's tasks, with lm-eval's names.
RECALL_IDS: Mapping[str, RecallIds] = MappingProxyType(
    {
        "niah_single_1": RecallIds(needles=1),
        "niah_single_2": RecallIds(needles=1),
        "niah_single_3": RecallIds(needles=1),
        "niah_multikey_1": RecallIds(needles=4),
        "niah_multikey_2": RecallIds(),
        "niah_multikey_3": RecallIds(),
        "niah_multivalue": RecallIds(needles=4),
        "niah_multiquery": RecallIds(needles=4),
        "ruler_vt": RecallIds(answer_tokens=30),
        "ruler_cwe": RecallIds(answer_tokens=120),
        "ruler_fwe": RecallIds(answer_tokens=50),
        "ruler_qa_squad": RecallIds(answer_tokens=32, scorer="string_match_part"),
        "ruler_qa_hotpot": RecallIds(answer_tokens=32, scorer="string_match_part"),
    }
)
RECALL_TASKS = tuple(RECALL_IDS)
# The tasks from which HALO selects softmax layers, in its published logs, with lm-eval's names.
RetrievalTask = Literal["fda", "swde", "ruler_qa_squad"]
CommonsenseTask = Literal["arc_challenge", "arc_easy", "hellaswag"]
RETRIEVAL_TASKS: tuple[RetrievalTask, ...] = get_args(RetrievalTask)
COMMONSENSE_TASKS: tuple[CommonsenseTask, ...] = get_args(CommonsenseTask)
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
