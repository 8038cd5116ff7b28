"""The output of a recall check: one record per sample, the heat maps, and the verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from amnesia_bench.records.evaluation import FinishReason, Interval, Outcome, SampleKey

# The verdict is "no regression" once a drop of the margin plus this fraction is ruled out.
TOLERATED_DROP = 0.05
DEPTH_ROWS = 5


class CheckVerdict(Enum):
    """The verdict of a check on one prompt set, or on all prompt sets together."""

    REGRESSION = "regression"
    NO_REGRESSION = "no_regression"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The decision rule of a check.

    `samples` is the maximum number of prompts per prompt set. `margin` is the largest drop in
    recall (a fraction) that does not count as a regression. `error_rate` is an upper bound on the
    probability that the check raises a false alarm on any prompt set at any look. It is also the
    upper bound on the probability of a false all-clear.
    """

    samples: int
    margin: float
    error_rate: float

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}: must be at least 1")
        if not 0 <= self.margin < 1 - TOLERATED_DROP:
            raise ValueError(f"margin={self.margin}: must be a fraction from 0 to below 0.95")
        if not 0 < self.error_rate < 0.5:
            raise ValueError(f"error_rate={self.error_rate}: must lie between 0 and 0.5")

    @property
    def excluded_drop(self) -> float:
        """The drop in recall that must be ruled out for the verdict "no regression"."""
        return self.margin + TOLERATED_DROP


@dataclass(frozen=True, kw_only=True)
class RecallSample:
    """The answer of one checkpoint to one prompt, with its outcome.

    `role` is the role of the checkpoint (pre, post or restored). `needle` is the half-open token
    range (begin, end) of the needle in the prompt, and `depth_percent` the needle's nominal depth
    in lm-eval; without exactly one needle, they are empty and None. `value` is the value to recall,
    or a list of several values, and `text` the answer.
    """

    role: str
    key: SampleKey
    context_tokens: int
    depth_percent: float | None
    needle: tuple[int, ...]
    prompt_tokens: int
    value: str | tuple[str, ...]
    text: str
    outcome: Outcome
    finish_reason: FinishReason

    @property
    def correct(self) -> bool:
        return self.outcome is Outcome.CORRECT

    @property
    def values(self) -> tuple[str, ...]:
        """The values to recall."""
        return (self.value,) if isinstance(self.value, str) else self.value

    @property
    def score(self) -> float:
        """The share of the values that the answer contains, as in lm-eval."""
        if isinstance(self.value, str):
            return float(self.correct)
        return sum(found_values(self.text, self.value)) / len(self.value)


_CONTROL = re.compile(r"[\x00-\x1f]")


def recalled_text(text: str) -> str:
    """Return an answer as lm-eval compares it: control characters count as line breaks."""
    return _CONTROL.sub("\n", text.strip()).strip()


def found_values(text: str, values: Sequence[str]) -> tuple[bool, ...]:
    """Return for each value whether an answer contains it.

    As in lm-eval, case is ignored, and a value may be part of a longer one: 12345678 contains
    1234567.
    """
    answer = recalled_text(text).lower()
    return tuple(value.lower() in answer for value in values)


@dataclass(frozen=True, kw_only=True)
class Recall:
    """The recall of one checkpoint: the mean score of its `n` answers, with its interval.

    An answer scores the fraction of the expected values that it contains. `correct` answers contain
    all of them. `empty` is the number of empty answers, which count as wrong.
    """

    correct: int
    empty: int
    n: int
    mean: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of two checkpoints on the same prompts.

    `difference` is the mean score of the first checkpoint minus that of the second. `only_first`
    and `only_second` are the numbers of prompts on which one of them has the higher score.
    `interval` and `p_value` (exact sign-flip test, two-sided; of scores 0 and 1, it is McNemar's)
    are only descriptive, since they ignore that the answers were tested at several looks. The
    verdict comes from the sequential test instead.
    """

    first: str
    second: str
    n: int
    only_first: int
    only_second: int
    difference: float
    interval: Interval
    p_value: float


@dataclass(frozen=True, kw_only=True)
class CheckedPromptSet:
    """The result of a check on the prompts of one task at one context length.

    If `n` is 0, the prompt set was skipped, since the verdict of the check was already certain.
    """

    task: str
    context_tokens: int
    n: int
    verdict: CheckVerdict
    recall: Mapping[str, Recall]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """The recall of one checkpoint by needle depth and context length, over all tasks of a check.

    Row i covers the depths from `depth_edges[i]` to `depth_edges[i + 1]`, in per cent. Column j is
    for the length `context_tokens[j]`. `correct` and `n` have the shape [depth, length], and count
    the correct answers and all answers.
    """

    role: str
    depth_edges: tuple[float, ...]
    context_tokens: tuple[int, ...]
    correct: tuple[tuple[int, ...], ...]
    n: tuple[tuple[int, ...], ...]


def heat_map(samples: Sequence[RecallSample], role: str) -> HeatMap:
    """Count the answers of one checkpoint by depth (in fifths) and context length.

    Answers to prompts without exactly one needle are left out.

    Raises:
        ValueError: a depth is outside 0 to 100 per cent.
    """
    of_role = [
        (sample, sample.depth_percent)
        for sample in samples
        if sample.role == role and sample.depth_percent is not None
    ]
    lengths = tuple(sorted({sample.context_tokens for sample, _ in of_role}))
    correct = [[0] * len(lengths) for _ in range(DEPTH_ROWS)]
    n = [[0] * len(lengths) for _ in range(DEPTH_ROWS)]
    for sample, depth in of_role:
        if not 0 <= depth <= 100:
            raise ValueError(f"{sample.key}: depth of {depth} %")
        # The last row includes its upper edge, a depth of 100 %.
        row = min(int(depth * DEPTH_ROWS / 100), DEPTH_ROWS - 1)
        column = lengths.index(sample.context_tokens)
        n[row][column] += 1
        correct[row][column] += sample.correct
    return HeatMap(
        role=role,
        depth_edges=tuple(100 * i / DEPTH_ROWS for i in range(DEPTH_ROWS + 1)),
        context_tokens=lengths,
        correct=tuple(map(tuple, correct)),
        n=tuple(map(tuple, n)),
    )


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The result of `amnesia check`.

    `checkpoints` maps the role of each checkpoint to its folder. `generations` is the number of
    answers that were generated, and `generations_planned` their number without early stopping.
    `advice` is the command that repairs a regression; None without one.
    """

    verdict: CheckVerdict
    rule: Rule
    checkpoints: Mapping[str, str]
    cells: tuple[CheckedPromptSet, ...]
    heat_maps: tuple[HeatMap, ...]
    generations: int
    generations_planned: int
    warnings: tuple[str, ...]
    advice: str | None
