"""Why recall is lost, in a report: the analyses of its models, and tests of the cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amnesia_bench.records.attention import (
    Autocorrelation,
    DistanceShift,
    FinetuneDivergence,
    GradientsByDistance,
    HeadDistances,
    PooledAttention,
)
from amnesia_bench.records.claim_verdict import ClaimVerdict


@dataclass(frozen=True, kw_only=True)
class ModelAnalysis:
    """The records of one analysis of a model and training seed.

    `finetune` is None if the analysis is of the checkpoint before fine-tuning, or of data only. The
    records of the kinds that the analysis did not measure are empty. `distances` are by role.
    """

    model: str
    finetune: str | None
    seed: str
    autocorrelations: tuple[Autocorrelation, ...] = ()
    gradients: tuple[GradientsByDistance, ...] = ()
    distances: Mapping[str, HeadDistances]
    shifts: Mapping[str, DistanceShift]
    maps: tuple[PooledAttention, ...] = ()
    divergence: FinetuneDivergence | None = None


@dataclass(frozen=True, kw_only=True)
class CauseCondition:
    """A test of the cause in one model, fine-tune or pair of sources, named by `subject`.

    The claim is that `estimate` is above 0. `low` and `high` are its 95 % bootstrap interval over
    the `n` units, `p_value` is that of the two-sided permutation or sign-flip test of the same
    units. They are None if there are too few units. `by_seed` has the estimate of each seed.
    """

    subject: str
    estimate: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    by_seed: Mapping[str, float]
    note: str
    verdict: ClaimVerdict


@dataclass(frozen=True, kw_only=True)
class CauseClaim:
    """A claim about the cause of the loss, and the verdict of the measured values on it.

    `measure` says what the estimates are and in which unit, `unit` what is resampled and counted:
    texts, heads or runs.
    """

    id: str
    text: str
    measure: str
    unit: str
    verdict: ClaimVerdict
    conditions: tuple[CauseCondition, ...]


@dataclass(frozen=True, kw_only=True)
class Causes:
    """All analyses of a report, and the claims that they decide."""

    analyses: tuple[ModelAnalysis, ...]
    claims: tuple[CauseClaim, ...]
