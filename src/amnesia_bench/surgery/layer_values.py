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
from amnesia_bench.surgery.plan import LayerPlan, PlannedTensor
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
        UserError: NaN or infinity in pre or post, from which no rule can compute, or a
            projection that is not one matrix.
    """
    _refuse_adapters(plan)
    if isinstance(rule, Blend):  # element by element: every tensor by itself
        groups = [[_planned_rows(tensor)] for tensor in plan.tensors]
    elif isinstance(rule, LowRank):
        roles = dict.fromkeys(tensor.role for tensor in plan.tensors)
        groups = [[_planned_rows(tensor) for tensor in plan.of_role(role)] for role in roles]
    else:
        groups = [_all_rows(pair.attention, plan.layer, role) for role in (Role.Q, Role.K)]
        _refuse_foreign_keys(rule, plan.layer, groups[1])
    pre = [_gather(pair.pre, parts) for parts in groups]
    post = [_gather(pair.post, parts) for parts in groups]
    new = _apply(rule, pre, post, _head_dim(pair.attention, plan.layer))
    tensors: dict[str, Float64] = {}
    for parts, matrix in zip(groups, new, strict=True):
        tensors |= _scatter(pair.post, parts, matrix, tensors)
    return tensors


def _apply(
    rule: ComputedRule, pre: list[Float64], post: list[Float64], head_dim: int
) -> list[Float64]:
    if isinstance(rule, Blend):
        return [rules.blend(a, b, rule.alpha) for a, b in zip(pre, post, strict=True)]
    if isinstance(rule, LowRank):
        return [rules.low_rank(a, b, rule.rank) for a, b in zip(pre, post, strict=True)]
    routings = _routing(pre, head_dim), _routing(post, head_dim)
    if isinstance(rule, QKPro):
        new = rules.qk_pro(*routings, rule.scope)
    else:
        new = rules.qk_procrustes(*routings)
    return [new.q.reshape(pre[0].shape), new.k.reshape(pre[1].shape)]


def _routing(q_and_k: list[Float64], head_dim: int) -> rules.Routing:
    q, k = (matrix.reshape(-1, head_dim, matrix.shape[-1]) for matrix in q_and_k)
    return rules.Routing(q=q, k=k)


def _all_rows(attention: AttentionMap, layer: int, role: Role) -> list[_Part]:
    parts = []
    for tensor in attention.tensors:
        if tensor.layer == layer and tensor.role == role:
            assert tensor.rows is not None, tensor  # _refuse_adapters
            heads = (tensor.rows.rows(h) for h in range(tensor.rows.num_heads))
            parts.append(_Part(name=tensor.name, rows=_index((r.start, r.stop) for r in heads)))
    return parts


def _head_dim(attention: AttentionMap, layer: int) -> int:
    """Return the head_dim of one layer's queries: of gemma4 it depends on the layer."""
    sizes = (
        t.rows.head_dim
        for t in attention.tensors
        if t.layer == layer and t.role is Role.Q and t.rows is not None
    )
    return next(sizes, attention.head_dim)


def _planned_rows(tensor: PlannedTensor) -> _Part:
    return _Part(name=tensor.name, rows=_index(tensor.rows))


def _refuse_adapters(plan: LayerPlan) -> None:
    """W_Q and W_K with low-rank adapters (zamba2) are sums, not tensors that a rule could move."""
    for tensor in plan.tensors:
        if tensor.adapter:
            raise UserError(
                f"{tensor.name!r} is an adapter on top of the projection; only its product with "
                "the other half would mean something to this rule.",
                hint="The rule copy restores this architecture: --variant qk",
            )


def _refuse_foreign_keys(rule: ComputedRule, layer: int, keys: Sequence[_Part]) -> None:
    if not keys:  # gemma3n, gemma4
        raise UserError(
            f"Layer {layer} reads the keys of an earlier layer; rule {rule.kind} needs W_Q and W_K "
            "of one layer.",
            hint="The rule copy restores this architecture: --variant qk",
        )


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
