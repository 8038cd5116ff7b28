"""The output of `amnesia rank-heads`: which attention heads copy the answer from the needle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Interval


@dataclass(frozen=True, kw_only=True)
class HeadScore:
    """The retrieval score of one query head, and how far a fine-tune moved its projections.

    `score` is the mean over prompts of the share of the answer's tokens that the head copies from
    the needle. `interval` is Wilson's for that many prompts; it is conservative, because shares
    vary less than zeros and ones. `kv_head` is the KV head that this head reads, together with the
    other query heads of its group. `drift_q` and `drift_k` are |post - pre| / |pre| (Frobenius
    norms) of W_Q of this head and of W_K of its KV head. They are None if no fine-tune was given,
    if the layer has no such weights of its own, or if the ratio is not finite.
    """

    layer: int
    head: int
    kv_head: int
    score: float
    interval: Interval
    drift_q: float | None
    drift_k: float | None


@dataclass(frozen=True, kw_only=True)
class DriftOverlap:
    """Whether the heads that drifted are the retrieval heads.

    `role` is the projection whose drift is meant, q or k. The heads are query heads for q and KV
    heads for k; the score of a KV head is the highest of its query heads. `correlation` is
    Spearman's rank correlation of score and drift over the `n` heads, with a percentile interval
    from a bootstrap over heads; None if one of the two is constant. Of the `top` heads that drifted
    most, `common` are among the `top` retrieval heads (those with a score of at least `threshold`).
    Heads with equal drift count in equal parts, so `common` need not be an integer. `expected` is
    the mean of `common` for random heads, and `p_value` the probability of at least that many
    (rounded down). All four are None if no head, or every head, is a retrieval head.
    """

    role: str
    n: int
    correlation: float | None
    interval: Interval | None
    threshold: float
    top: int
    common: float | None
    expected: float | None
    p_value: float | None


@dataclass(frozen=True, kw_only=True)
class HeadRanking:
    """The heads of all softmax layers by retrieval score, the highest first.

    Of heads with equal scores, the one with the lower layer, then the lower index comes first.
    `prompts` identifies the prompts, `n` is their number, and `tokens` has the length of the
    shortest and of the longest in tokens, without the answer. The model itself finds the complete
    answer most likely on `recalled` of them. `post` is the fine-tune whose drift is in `heads` and
    `overlaps`. `settings` are the dtype and device of the model.
    """

    checkpoint: Parent
    post: Parent | None
    prompts: Parent
    n: int
    tokens: tuple[int, ...]
    recalled: int
    heads: tuple[HeadScore, ...]
    overlaps: tuple[DriftOverlap, ...]
    settings: Mapping[str, str]

    def top(self, count: int) -> tuple[HeadScore, ...]:
        """Return the `count` heads with the highest scores.

        Raises:
            ValueError: `count` is 0, or fewer heads have a score above 0.
        """
        copying = sum(entry.score > 0 for entry in self.heads)
        if not 0 < count <= copying:
            raise ValueError(
                f"top{count}: only {copying} of the {len(self.heads)} heads copy anything from a "
                "needle"
            )
        return self.heads[:count]
