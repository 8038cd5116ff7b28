"""What a recall check writes: one record per sample, the heat map, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from amnesia_bench.records.evaluation import FinishReason, Interval, Outcome, SampleKey

# "No regression" is said when a drop this far above the margin is excluded.
TOLERATED_DROP = 0.05
DEPTH_ROWS = 5


class CheckVerdict(Enum):
    """What a check found, in one prompt set or in all."""

    REGRESSION = "regression"
    NO_REGRESSION = "no_regression"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a check decides by.

    `samples` is the most prompts per set. `margin` is the drop (a fraction) above which recall
    has regressed. `error_rate` bounds the false alarms of a whole check, over all prompt sets and
    looks, and in the same way its false all-clears.
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
        """The drop that must be excluded for "no regression"."""
        return self.margin + TOLERATED_DROP


@dataclass(frozen=True, kw_only=True)
class RecallSample:
    """One answer to one prompt, judged.

    `role` is the checkpoint's (pre, post, restored), `needle` the token positions of the inserted
    needle from first to one behind its last, `depth_percent` where lm-eval meant to put it.
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
    """How often one checkpoint found the needle; `empty` answers count as wrong."""

    correct: int
    empty: int
    n: int
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two checkpoints on the same prompts; `difference` is the first's accuracy less the second's.

    `interval` and `p_value` (McNemar's exact test, two-sided) are those of these counts by
    themselves: a description. The verdict comes from the sequential rule.
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
    """One task at one length. Without a sample (`n` 0) it was not run: all was clear before."""

    task: str
    context_tokens: int
    n: int
    verdict: CheckVerdict
    recall: Mapping[str, Recall]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Recall of one checkpoint by depth and length, all tasks of the check together.

    `depth_edges` are percentages, one more than there are rows. `correct` and `n` are [depth,
    length], the lengths being `context_tokens`.
    """

    role: str
    depth_edges: tuple[float, ...]
    context_tokens: tuple[int, ...]
    correct: tuple[tuple[int, ...], ...]
    n: tuple[tuple[int, ...], ...]


def heat_map(samples: Sequence[RecallSample], role: str) -> HeatMap:
    """Count the samples of one checkpoint by depth (fifths of the context) and length.

    Raises:
        ValueError: a depth lies outside 0 to 100 per cent.
    """
    mine = [sample for sample in samples if sample.role == role]
    lengths = tuple(sorted({sample.context_tokens for sample in mine}))
    correct = [[0] * len(lengths) for _ in range(DEPTH_ROWS)]
    n = [[0] * len(lengths) for _ in range(DEPTH_ROWS)]
    for sample in mine:
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

    `checkpoints` maps role to folder. `generations` is how many answers the verdict took,
    `generations_planned` how many it would have taken without stopping early. `advice` is the
    command that repairs a regression.
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
