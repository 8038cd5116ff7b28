"""The output of a recall check: one record per sample, the heat maps, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from amnesia_bench.records.evaluation import FinishReason, Interval, Outcome, SampleKey

# "No regression" is the verdict once a drop this far above the margin is ruled out.
TOLERATED_DROP = 0.05
DEPTH_ROWS = 5


class CheckVerdict(Enum):
    """The verdict of a check on one prompt set, or on all."""

    REGRESSION = "regression"
    NO_REGRESSION = "no_regression"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The decision rule of a check.

    `samples` is the maximum number of prompts per set. `margin` is the drop (a fraction) above
    which recall has regressed. `error_rate` bounds the probability of a false alarm in a whole
    check, over all prompt sets and looks, and likewise that of a false all-clear.
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
        """The drop that must be ruled out for the verdict "no regression"."""
        return self.margin + TOLERATED_DROP


@dataclass(frozen=True, kw_only=True)
class RecallSample:
    """One answer to one prompt, with its outcome.

    `role` is the role of the checkpoint (pre, post, restored). `needle` has the token position of
    the needle's first token and that after its last, `depth_percent` its nominal depth in lm-eval.
    """

    role: str
    key: SampleKey
    context_tokens: int
    depth_percent: float
    needle: tuple[int, ...]
    prompt_tokens: int
    value: str
    text: str
    outcome: Outcome
    finish_reason: FinishReason

    @property
    def correct(self) -> bool:
        return self.outcome is Outcome.CORRECT


@dataclass(frozen=True, kw_only=True)
class Recall:
    """The recall of one checkpoint: `correct` of `n` answers; `empty` answers count as wrong."""

    correct: int
    empty: int
    n: int
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two checkpoints on the same prompts; `difference` is first minus second accuracy.

    `interval` and `p_value` (McNemar's exact test, two-sided) are descriptive: they ignore the
    sequential looks. The verdict comes from the sequential rule.
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
    """One task at one length. If `n` is 0 it was skipped: the verdict was already certain."""

    task: str
    context_tokens: int
    n: int
    verdict: CheckVerdict
    recall: Mapping[str, Recall]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Recall of one checkpoint by depth and length, over all tasks of the check.

    `depth_edges` are percentages, one more than the number of rows. `correct` and `n` are [depth,
    length], with the lengths in `context_tokens`.
    """

    role: str
    depth_edges: tuple[float, ...]
    context_tokens: tuple[int, ...]
    correct: tuple[tuple[int, ...], ...]
    n: tuple[tuple[int, ...], ...]


def heat_map(samples: Sequence[RecallSample], role: str) -> HeatMap:
    """Count the samples of one checkpoint by depth (fifths of the context) and length.

    Raises:
        ValueError: a depth is outside 0 to 100 per cent.
    """
    of_role = [sample for sample in samples if sample.role == role]
    lengths = tuple(sorted({sample.context_tokens for sample in of_role}))
    correct = [[0] * len(lengths) for _ in range(DEPTH_ROWS)]
    n = [[0] * len(lengths) for _ in range(DEPTH_ROWS)]
    for sample in of_role:
        if not 0 <= sample.depth_percent <= 100:
            raise ValueError(f"{sample.key}: depth of {sample.depth_percent} %")
        # The last row includes its upper edge.
        row = min(int(sample.depth_percent * DEPTH_ROWS / 100), DEPTH_ROWS - 1)
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
    """The outcome of `amnesia check`.

    `checkpoints` maps role to folder. `generations` is the number of answers until the verdict,
    `generations_planned` the number without early stopping. `advice` is the command that repairs a
    regression.
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
