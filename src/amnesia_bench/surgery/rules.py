"""Compute a repaired projection from its pre-SFT and post-SFT values.

Pure functions of float64 arrays; no files, no names. Shape legend:
    H  query heads          G  KV heads (H = G * R)     R  query heads per KV head
    D  head dimension       M  model dimension, plus one column where the projection has a bias
A head's logit for inputs x, y is (W_Q x)·(W_K y), so W_Q^T W_K is the routing that the rules
below reason about. A bias is treated as one more input that is always 1. RoPE and q/k norms act
between the projection and the logit; the rules use the projections alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from amnesia_bench.weights.numbers import Float64


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The two projections that determine what a layer attends to: q [H, D, M] and k [G, D, M]."""

    q: Float64
    k: Float64

    @property
    def queries_per_key(self) -> int:
        return int(self.q.shape[0] // self.k.shape[0])


def blend(pre: Float64, post: Float64, alpha: float) -> Float64:
    """Interpolate from post (alpha = 0) to pre (alpha = 1); exact at both ends."""
    if alpha == 1:
        return pre.copy()
    return _add_change(post, alpha * (pre - post))


def low_rank(pre: Float64, post: Float64, rank: int) -> Float64:
    """Undo the `rank` largest singular directions of the drift of one matrix [rows, M]."""
    left, sizes, right = np.linalg.svd(pre - post, full_matrices=False)
    return _add_change(post, (left[:, :rank] * sizes[:rank]) @ right[:rank])


def qk_pro(pre: Routing, post: Routing, scope: Literal["head", "layer"]) -> Routing:
    """Remove the part of the drift that affects logits with the other projection; keep the rest.

    W_Q becomes the matrix closest to its post value with W_Q W_K_pre^T = W_Q_pre W_K_pre^T: its
    drift is projected out of the row space of W_K_pre. W_K is treated likewise with W_Q_pre.
    Under scope "head" each query head uses its own KV head, under "layer" all of them.

    This is a reconstruction: the formula (eq. 94) is missing from the paper's text, and App. N
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

    Finds, per KV head, the orthogonal R (D x D) that minimises
    |R W_Q_pre - W_Q_post|^2 + |R W_K_pre - W_K_post|^2, summed over the query heads that read
    this KV head; the result is R W_Q_pre, R W_K_pre (Schoenemann 1966, by one SVD). This is
    a reconstruction of "we model it as a Procrustes problem" (paper section 7.4, eq. 18).
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
    """Return, per KV head, the slice of the query heads that read it."""
    per_key = routing.queries_per_key
    return [slice(g * per_key, (g + 1) * per_key) for g in range(routing.k.shape[0])]


def _stacked(heads: Float64) -> Float64:
    """Reshape [heads, D, M] to [heads * D, M]."""
    return heads.reshape(-1, heads.shape[-1])


def _project_on_rows(drift: Float64, rows: Float64) -> Float64:
    """Return the part of `drift` [..., M] inside the row space of `rows` [N, M]."""
    _, sizes, right = np.linalg.svd(rows, full_matrices=False)
    cutoff = sizes.max(initial=0.0) * max(rows.shape) * np.finfo(np.float64).eps
    basis = right[sizes > cutoff]
    inside: Float64 = (drift @ basis.T) @ basis
    return inside


def _add_change(post: Float64, change: Float64) -> Float64:
    """Return post + change, with the exact bits of post (also -0.0) where the change is zero."""
    return np.where(change == 0, post, post + change)
