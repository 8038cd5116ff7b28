"""Compare the retrieval scores of heads with the drift of their projections.

Shapes: N heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.analysis.decay import Floats
from amnesia_bench.records.head_ranking import DriftOverlap, HeadScore
from amnesia_bench.statistics.resampling import bootstrap_interval, rank_correlation

# A head with at least this score is a retrieval head (arXiv 2404.15574, section 3).
THRESHOLD = 0.1


def drift_overlap(heads: Sequence[HeadScore], role: Literal["q", "k"]) -> DriftOverlap | None:
    """Compare the scores of heads with the drift of W_Q or W_K; None if no head has a drift.

    The units are query heads for W_Q, and KV heads for W_K: the query heads of a group share one
    drift of W_K, so they are not independent. The score of a KV head is the highest of its group.
    """
    units: dict[tuple[int, int], tuple[float, float]] = {}
    for head in heads:
        drift = head.drift_q if role == "q" else head.drift_k
        if drift is not None:
            unit = head.layer, head.head if role == "q" else head.kv_head
            units[unit] = max(head.score, units.get(unit, (0.0, drift))[0]), drift
    pairs = [*units.values()]
    if not pairs:
        return None
    scores, drifts = np.array(pairs).T
    correlation = rank_correlation(scores.tolist(), drifts.tolist())
    known = math.isfinite(correlation)
    interval = bootstrap_interval([np.array(pairs)], lambda units: rank_correlation(*units[0].T))
    n, top = len(pairs), int((scores >= THRESHOLD).sum())
    common = expected = p_value = None
    if 0 < top < n:
        common = _common(scores >= THRESHOLD, drifts, top)
        expected = top * top / n
        p_value = _at_least(math.floor(common + 1e-9), top, n)
    return DriftOverlap(
        role=role,
        n=n,
        correlation=correlation if known else None,
        interval=interval if known else None,
        threshold=THRESHOLD,
        top=top,
        common=common,
        expected=expected,
        p_value=p_value,
    )


def _common(chosen: NDArray[np.bool_], drifts: Floats, top: int) -> float:
    """Return how many of the `top` largest drifts are of chosen heads, on average over ties."""
    last = np.sort(drifts)[::-1][top - 1]
    above, tied = drifts > last, drifts == last
    share = (top - above.sum()) / tied.sum()
    return float((chosen & above).sum() + share * (chosen & tied).sum())


def _at_least(common: int, top: int, n: int) -> float:
    """Return the probability that two random sets of `top` of n heads have this many in common."""
    ways = (math.comb(top, i) * math.comb(n - top, top - i) for i in range(max(common, 0), top + 1))
    return sum(ways) / math.comb(n, top)
