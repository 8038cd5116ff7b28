"""The content of tuning.json: the candidates of `amnesia tune`, the choice, its confirmation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Interval
from amnesia_bench.records.recall import Comparison
from amnesia_bench.records.roles import Role


class Fate(StrEnum):
    """What became of a candidate.

    A finished one answered all questions. A dropped one was significantly worse than post or
    QK-Restore. A paused one got no further share of the budget.
    """

    FINISHED = "finished"
    DROPPED = "dropped"
    PAUSED = "paused"


@dataclass(frozen=True, kw_only=True)
class PlaceShare:
    """The share `alpha` of pre in the tensors of one role in one layer."""

    layer: int
    role: Role
    alpha: float


@dataclass(frozen=True, kw_only=True)
class TuningScore:
    """The number and the share of correct answers to `n` questions, with its interval (Wilson)."""

    correct: int
    n: int
    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class TunedCandidate:
    """A candidate, and its scores on the questions that it answered.

    `rest` is the share of pre in all weights without a place in `shares`. `front` is true if the
    candidate is finished and no other finished one is better in one objective and at least as good
    in the other.
    """

    label: str
    description: str
    shares: tuple[PlaceShare, ...]
    rest: float
    fate: Fate
    recall: TuningScore
    reasoning: TuningScore
    front: bool


@dataclass(frozen=True, kw_only=True)
class ConfirmedCandidate:
    """The scores of a candidate on fresh questions, and its differences from known points.

    `recall_differences` and `reasoning_differences` compare the candidate with post and, unless it
    is QK-Restore, with QK-Restore.
    """

    label: str
    recall: TuningScore
    reasoning: TuningScore
    recall_differences: tuple[Comparison, ...]
    reasoning_differences: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True)
class Screen:
    """A free screen: what it measures, and its value per softmax layer (larger: tried earlier)."""

    name: str
    by_layer: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TuningWork:
    """How much was computed.

    `budget` is in full evaluations, `full` is the number of answers of one. `answers` is the number
    of answers that the search asked for; `confirmation` is the number for the fresh questions,
    which the budget does not pay for.
    """

    budget: float
    full: int
    answers: int
    confirmation: int


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The result of `amnesia tune`.

    `chosen` is the label of the candidate that the checkpoint contains, by `rule`. `confirmed` has
    post, QK-Restore and the chosen candidate. `hypervolume` is the area that the finished
    candidates dominate, of recall times reasoning on the questions of the search. `settings` has
    everything else on which the result depends.
    """

    pre: Parent
    post: Parent
    rule: str
    chosen: str
    candidates: tuple[TunedCandidate, ...]
    confirmed: tuple[ConfirmedCandidate, ...]
    screens: tuple[Screen, ...]
    hypervolume: float
    work: TuningWork
    settings: Mapping[str, str]

    def candidate(self, label: str) -> TunedCandidate:
        """Return the candidate with this label."""
        return next(each for each in self.candidates if each.label == label)
