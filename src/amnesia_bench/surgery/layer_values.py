"""The projections of one layer as float64 matrices: gathered from the tensors, ruled, put back.

A role may lie in several tensors (weight and bias) or in some rows of one (fused or gated
projections). Here it becomes one matrix [rows, M], a bias its last column, and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.config.schema import Blend, LowRank, QKPro, QKProcrustes
from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import AttentionMap, Role
from amnesia_bench.surgery import rules
from amnesia_bench.surgery.plan import LayerPlan
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.numbers import Float64, decode

ComputedRule = Blend | LowRank | QKPro | QKProcrustes


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The two checkpoints of a restore and where their attention tensors are."""

    pre: Checkpoint
    post: Checkpoint
    attention: AttentionMap


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Rows of one tensor, in head order."""

    name: str
    rows: NDArray[np.intp]


def ruled_tensors(rule: ComputedRule, pair: Pair, plan: LayerPlan) -> dict[str, Float64]:
    """Return, per planned tensor, its values [rows, M] with this rule applied.

    Rows outside the role are post's. Q/K rules see all heads of the layer, whichever of them
    are planned; the others see the planned rows.

    Raises:
        UserError: NaN or infinity in pre or post, from which no rule can compute.
    """
    if isinstance(rule, QKPro | QKProcrustes):
        parts = {role: _all_rows(pair.attention, plan.layer, role) for role in (Role.Q, Role.K)}
    else:
        parts = {t.role: _planned_rows(plan, t.role) for t in plan.tensors}
    pre = {role: _gather(pair.pre, role_parts) for role, role_parts in parts.items()}
    post = {role: _gather(pair.post, role_parts) for role, role_parts in parts.items()}
    new = _apply(rule, pre, post, pair.attention.head_dim)
    tensors: dict[str, Float64] = {}
    for role, role_parts in parts.items():
        tensors |= _scatter(pair.post, role_parts, new[role], tensors)
    return tensors


def _apply(
    rule: ComputedRule, pre: dict[Role, Float64], post: dict[Role, Float64], head_dim: int
) -> dict[Role, Float64]:
    if isinstance(rule, Blend):
        return {role: rules.blend(pre[role], post[role], rule.alpha) for role in pre}
    if isinstance(rule, LowRank):
        return {role: rules.low_rank(pre[role], post[role], rule.rank) for role in pre}
    routings = _routing(pre, head_dim), _routing(post, head_dim)
    if isinstance(rule, QKPro):
        new = rules.qk_pro(*routings, rule.scope)
    else:
        new = rules.qk_procrustes(*routings)
    return {
        Role.Q: new.q.reshape(pre[Role.Q].shape),
        Role.K: new.k.reshape(pre[Role.K].shape),
    }


def _routing(matrices: dict[Role, Float64], head_dim: int) -> rules.Routing:
    q, k = (
        matrices[role].reshape(-1, head_dim, matrices[role].shape[-1]) for role in (Role.Q, Role.K)
    )
    return rules.Routing(q=q, k=k)


def _all_rows(attention: AttentionMap, layer: int, role: Role) -> list[_Part]:
    parts = []
    for tensor in attention.tensors:
        if tensor.layer == layer and tensor.role == role and tensor.rows is not None:
            heads = (tensor.rows.rows(h) for h in range(tensor.rows.num_heads))
            parts.append(_Part(name=tensor.name, rows=_index((r.start, r.stop) for r in heads)))
    return parts


def _planned_rows(plan: LayerPlan, role: Role) -> list[_Part]:
    return [_Part(name=tensor.name, rows=_index(tensor.rows)) for tensor in plan.of_role(role)]


def _index(ranges: Iterable[tuple[int, int]]) -> NDArray[np.intp]:
    return np.concatenate([np.arange(a, b) for a, b in ranges])


def _values(checkpoint: Checkpoint, name: str) -> Float64:
    """Return a tensor as [rows, row length]; a vector becomes one column."""
    _, entry = checkpoint.tensors[name]
    values = decode(checkpoint.read(name), entry.dtype).reshape(entry.num_rows, -1)
    if not np.isfinite(values).all():
        raise UserError(
            f"{checkpoint.folder}: {name!r} holds NaN or infinity; only the copy rule can go on "
            "where that is not in the rows to be copied."
        )
    return values


def _gather(checkpoint: Checkpoint, parts: Sequence[_Part]) -> Float64:
    return np.hstack([_values(checkpoint, part.name)[part.rows] for part in parts])


def _scatter(
    post: Checkpoint, parts: Sequence[_Part], matrix: Float64, done: dict[str, Float64]
) -> dict[str, Float64]:
    """Cut `matrix` back into its tensors, on top of `done` or else of post's values."""
    tensors, column = {}, 0
    for part in parts:
        values = done[part.name] if part.name in done else _values(post, part.name)
        values[part.rows] = matrix[:, column : column + values.shape[1]]
        column += values.shape[1]
        tensors[part.name] = values
    return tensors
