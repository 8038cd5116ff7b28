"""The scores of one evaluation, sample by sample, whichever tool wrote them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from amnesia_bench.errors import UserError

# Metrics of whole corpora. lm-eval logs a pair of numbers per sample, whose mean has no meaning.
_CORPUS_METRICS = ("f1", "mcc", "bleu", "chrf", "ter")


class MetricKey(NamedTuple):
    """What a score measures: a metric of a task, by a scorer (for lm-eval, a filter)."""

    task: str
    metric: str
    scorer: str

    def __str__(self) -> str:
        return f"{self.task} {self.metric} ({self.scorer})"


@dataclass(frozen=True, kw_only=True)
class ScoredSample:
    """The score of one sample; with several answers to it, one of their scores.

    `key` identifies the content of the sample, so it is the same in two evaluations of the same
    data, and `name` is how the log calls it. `prompt` identifies the prompt and the correct answer.
    """

    key: str
    name: str
    prompt: str
    score: float


@dataclass(frozen=True, kw_only=True)
class ScoreSeries:
    """All scores of one metric: by the key of each sample its scores, name and prompt."""

    higher_is_better: bool
    scores: Mapping[str, tuple[float, ...]]
    names: Mapping[str, str]
    prompts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ScoreLog:
    """One evaluation.

    Attributes:
        format: lm-eval, inspect_ai or amnesia_bench.
        files: the log files.
        series: the scores by metric.
        versions: the version of each task; tasks of different versions are not comparable.
        settings: other settings of each task that explain why prompts differ.
        skipped: metrics without a score per sample, with the reason.
        warnings: what the files do not say, and what is assumed instead.
    """

    format: str
    files: tuple[Path, ...]
    series: Mapping[MetricKey, ScoreSeries]
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def series_of(samples: Iterable[ScoredSample], *, higher_is_better: bool) -> ScoreSeries:
    """Collect the scores of a metric; samples with the same key are answers to the same sample."""
    scores: dict[str, list[float]] = {}
    names: dict[str, str] = {}
    prompts: dict[str, str] = {}
    for sample in samples:
        scores.setdefault(sample.key, []).append(sample.score)
        names[sample.key] = sample.name
        prompts[sample.key] = sample.prompt
    return ScoreSeries(
        higher_is_better=higher_is_better,
        scores={key: tuple(values) for key, values in scores.items()},
        names=names,
        prompts=prompts,
    )


def sample_score(metric: str, value: object, where: str) -> float | None:
    """Return a logged value as a number; None if it is not a score of one sample.

    A list of true and false, such as ifeval's verdicts on instructions, is scored by its mean.

    Raises:
        UserError: the value is NaN or infinite.
    """
    if isinstance(value, list) and value and metric not in _CORPUS_METRICS:
        if not all(isinstance(item, bool) for item in value):
            return None
        return sum(value) / len(value)
    if not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        raise UserError(
            f"{where}: the score {metric} is {value}",
            hint="Evaluate this sample again, or remove its line from both logs.",
        )
    return float(value)
