"""Compute repaired projections from their pre-SFT and post-SFT values.

All rules are pure functions of float64 arrays; they use no files or tensor names. Shapes:
    H  query heads          G  KV heads (H = G * R)     R  query heads per KV head
    D  head dimension       M  model dimension, plus one column where the projection has a bias
The logit of a head for the inputs x and y is (W_Q x)·(W_K y), so the rules below are defined in
terms of W_Q^T W_K, the routing matrix. A bias is treated as the weight of one more input, which is
always 1. RoPE and qk-norms act between the projections and the logit; the rules ignore them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.weights.numbers import Float64


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The projections W_Q [H, D, M] and W_K [G, D, M], which determine what a layer attends to."""

    q: Float64
    k: Float64

    @property
    def queries_per_key(self) -> int:
        return int(self.q.shape[0] // self.k.shape[0])


def blend(pre: Float64, post: Float64, alpha: float) -> Float64:
    """Interpolate linearly from post (alpha = 0) to pre (alpha = 1); both ends are bit-exact."""
    if alpha == 1:
        return pre.copy()
    return _add_change(post, alpha * (pre - post))


def sparse_change(pre: Float64, post: Float64, kept: NDArray[np.bool_], scale: float) -> Float64:
    """Keep some entries of the change from pre to post, times `scale`; all others become pre's.

    TIES (Yadav et al. 2023, arXiv 2306.01708) keeps the largest entries; with a single fine-tune
    its election of signs has no effect. DARE (Yu et al. 2024, arXiv 2311.03099) keeps random
    entries and scales them by 1 / (1 - p). Entries that pre and post share keep post's exact bits.
    """
    changed = _add_change(post, (scale - 1) * (post - pre))
    return np.where(kept | (pre == post), changed, pre)


def low_rank(pre: Float64, post: Float64, rank: int) -> Float64:
    """Undo the drift of one matrix [rows, M] along its `rank` largest singular directions."""
    left, sizes, right = np.linalg.svd(pre - post, full_matrices=False)
    return _add_change(post, (left[:, :rank] * sizes[:rank]) @ right[:rank])


def qk_pro(pre: Routing, post: Routing, scope: Literal["head", "layer"]) -> Routing:
    """Undo only the part of each projection's drift that affects logits with the other projection.

    The new W_Q is the matrix closest to W_Q_post that satisfies W_Q W_K_pre^T = W_Q_pre W_K_pre^T;
    that is, the component of its drift in the row space of W_K_pre is removed. W_K is treated
    likewise, with the row space of W_Q_pre. With scope "head", the row space is that of the query
    head's own KV head (for W_K: of the query heads that share the KV head); with scope "layer", it
    is that of all heads.

    This rule is a reconstruction: the formula (eq. 94) is missing from the paper's text, and App. N
    describes it only in words.
    """
    drift = Routing(q=pre.q - post.q, k=pre.k - post.k)
    visible = Routing(q=np.empty_like(drift.q), k=np.empty_like(drift.k))
    if scope == "layer":
        visible.q[:] = _project_on_rows(drift.q, _stacked(pre.k))
        visible.k[:] = _project_on_rows(drift.k, _stacked(pre.q))
    else:
        for group, queries in enumerate(_query_groups(pre)):
            visible.q[queries] = _project_on_rows(drift.q[queries], pre.k[group])
            visible.k[group] = _project_on_rows(drift.k[group], _stacked(pre.q[queries]))
    return Routing(q=_add_change(post.q, visible.q), k=_add_change(post.k, visible.k))


def qk_procrustes(pre: Routing, post: Routing) -> Routing:
    """Rotate the pre projections towards post without changing any pre logit.

    For each KV head, one SVD finds the orthogonal R (D x D) that minimises
    |R W_Q_pre - W_Q_post|^2 + |R W_K_pre - W_K_post|^2, where the first term is summed over the
    query heads that share the KV head (Schoenemann 1966). The results are R W_Q_pre and R W_K_pre.
    This rule is a reconstruction of "we model it as a Procrustes problem" (paper section 7.4,
    eq. 18).
    """
    rotated = Routing(q=pre.q.copy(), k=pre.k.copy())
    for group, queries in enumerate(_query_groups(pre)):
        if np.array_equal(pre.q[queries], post.q[queries]) and np.array_equal(
            pre.k[group], post.k[group]
        ):
            continue  # R is the identity; the SVD would only add rounding
        correlation = post.k[group] @ pre.k[group].T
        correlation += np.einsum("hdm,hem->de", post.q[queries], pre.q[queries])
        left, _, right = np.linalg.svd(correlation)
        rotation = left @ right
        rotated.q[queries] = rotation @ pre.q[queries]
        rotated.k[group] = rotation @ pre.k[group]
    return rotated


def _query_groups(routing: Routing) -> list[slice]:
    """Return, for each KV head, the slice of query heads that share it."""
    per_key = routing.queries_per_key
    return [slice(g * per_key, (g + 1) * per_key) for g in range(routing.k.shape[0])]


def _stacked(heads: Float64) -> Float64:
    """Reshape [heads, D, M] to [heads * D, M]."""
    return heads.reshape(-1, heads.shape[-1])


def _project_on_rows(drift: Float64, rows: Float64) -> Float64:
    """Return the component of `drift` [..., M] in the row space of `rows` [number of rows, M]."""
    _, sizes, right = np.linalg.svd(rows, full_matrices=False)
    cutoff = sizes.max(initial=0.0) * max(rows.shape) * np.finfo(np.float64).eps
    basis = right[sizes > cutoff]
    inside: Float64 = (drift @ basis.T) @ basis
    return inside


def _add_change(post: Float64, change: Float64) -> Float64:
    """Return post + change; where the change is zero, keep the exact bits of post, also of -0.0."""
    return np.where(change == 0, post, post + change)
