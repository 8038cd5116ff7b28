"""Apply a rule that needs complete matrices to the projections of one layer, in float64.

A projection may be stored in several tensors (weight and bias) or in some of the rows of one tensor
(fused or gated projections). Its rows are gathered into one matrix [rows, M], with the bias, if
any, as the last column. The result is scattered back into the tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.config.schema import LowRank, QKPro, QKProcrustes
from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import AttentionMap, Role
from amnesia_bench.surgery import rules
from amnesia_bench.surgery.plan import LayerPlan, PlannedTensor
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.numbers import Float64, decode

MatrixRule = LowRank | QKPro | QKProcrustes


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The two checkpoints of a restore, and the attention map of post."""

    pre: Checkpoint
    post: Checkpoint
    attention: AttentionMap


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The indices of some rows of one tensor, in head order."""

    name: str
    rows: NDArray[np.intp]


def apply_rule(rule: MatrixRule, pair: Pair, plan: LayerPlan) -> dict[str, Float64]:
    """Map tensor names to the values [rows, M] that the rule computes for them.

    The low-rank rule uses only the planned rows. The Q/K rules use all heads of the layer, so their
    result covers every tensor of W_Q and W_K, planned or not. Rows that belong to another role keep
    post's values.

    Raises:
        UserError: an input tensor contains NaN or infinity, or the layer does not store each
            projection as one matrix (low-rank adapters, or keys shared with an earlier layer).
    """
    refuse_adapters(plan.tensors)
    assert plan.layer is not None, plan  # these rules are for softmax layers
    if isinstance(rule, LowRank):
        roles = dict.fromkeys(t.role for t in plan.tensors if t.role is not None)
        groups = [[_planned_rows(tensor) for tensor in plan.of_role(role)] for role in roles]
    else:
        groups = [_all_rows(pair.attention, plan.layer, role) for role in (Role.Q, Role.K)]
        _refuse_shared_keys(rule, plan.layer, groups[1])
    pre = [_gather(pair.pre, parts) for parts in groups]
    post = [_gather(pair.post, parts) for parts in groups]
    new = _new_matrices(rule, pre, post, _head_dim(pair.attention, plan.layer))
    tensors: dict[str, Float64] = {}
    for parts, matrix in zip(groups, new, strict=True):
        tensors |= _scatter(pair.post, parts, matrix, tensors)
    return tensors


def _new_matrices(
    rule: MatrixRule, pre: list[Float64], post: list[Float64], head_dim: int
) -> list[Float64]:
    if isinstance(rule, LowRank):
        return [rules.low_rank(a, b, rule.rank) for a, b in zip(pre, post, strict=True)]
    routings = _routing(pre, head_dim), _routing(post, head_dim)
    if isinstance(rule, QKPro):
        new = rules.qk_pro(*routings, rule.scope)
    elif isinstance(rule, QKProcrustes):
        new = rules.qk_procrustes(*routings)
    else:
        assert_never(rule)
    return [new.q.reshape(pre[0].shape), new.k.reshape(pre[1].shape)]


def _routing(q_and_k: list[Float64], head_dim: int) -> rules.Routing:
    q, k = (matrix.reshape(-1, head_dim, matrix.shape[-1]) for matrix in q_and_k)
    return rules.Routing(q=q, k=k)


def _all_rows(attention: AttentionMap, layer: int, role: Role) -> list[_Part]:
    parts = []
    for tensor in attention.tensors:
        if tensor.layer == layer and tensor.role == role:
            assert tensor.rows is not None, tensor  # guaranteed by refuse_adapters
            heads = (tensor.rows.rows(h) for h in range(tensor.rows.num_heads))
            parts.append(_Part(name=tensor.name, rows=_index((r.start, r.stop) for r in heads)))
    return parts


def _head_dim(attention: AttentionMap, layer: int) -> int:
    """Return the head_dim of the queries of one layer; in gemma4 it differs between layers."""
    sizes = (
        t.rows.head_dim
        for t in attention.tensors
        if t.layer == layer and t.role is Role.Q and t.rows is not None
    )
    return next(sizes, attention.head_dim)


def _planned_rows(tensor: PlannedTensor) -> _Part:
    return _Part(name=tensor.name, rows=_index(tensor.rows))


def refuse_adapters(tensors: Iterable[PlannedTensor]) -> None:
    """Refuse low-rank adapters (zamba2): with them W_Q and W_K are sums of several tensors.

    Raises:
        UserError: one of the tensors is half of an adapter.
    """
    for tensor in tensors:
        if tensor.adapter:
            raise UserError(
                f"{tensor.name!r} is one half of an adapter on top of the projection; this rule "
                "needs the product of both halves.",
                hint="Use the copy rule for this architecture: --variant qk",
            )


def _refuse_shared_keys(rule: MatrixRule, layer: int, keys: Sequence[_Part]) -> None:
    if not keys:  # some layers of gemma3n and gemma4
        raise UserError(
            f"Layer {layer} reads the keys of an earlier layer; rule {rule.kind} needs W_Q and W_K "
            "of one layer.",
            hint="Use the copy rule for this architecture: --variant qk",
        )


def _index(ranges: Iterable[tuple[int, int]]) -> NDArray[np.intp]:
    return np.concatenate([np.arange(a, b) for a, b in ranges])


def _values(checkpoint: Checkpoint, name: str) -> Float64:
    """Return a tensor as a matrix [rows, row length]; a vector becomes a single column."""
    _, entry = checkpoint.tensors[name]
    values = decode(checkpoint.read(name), entry.dtype).reshape(entry.num_rows, -1)
    if not np.isfinite(values).all():
        raise tensor_not_finite(checkpoint, name)
    return values


def tensor_not_finite(checkpoint: Checkpoint, name: str) -> UserError:
    """Return the error for a tensor whose values a rule cannot compute with."""
    return UserError(
        f"{checkpoint.folder}: {name!r} contains NaN or infinity. Only the copy rule works here, "
        "and only if the rows to copy are finite."
    )


def _gather(checkpoint: Checkpoint, parts: Sequence[_Part]) -> Float64:
    return np.hstack([_values(checkpoint, part.name)[part.rows] for part in parts])


def _scatter(
    post: Checkpoint, parts: Sequence[_Part], matrix: Float64, scattered: dict[str, Float64]
) -> dict[str, Float64]:
    """Split `matrix` into its parts, and return each part's tensor with those rows replaced.

    Rows outside the parts come from `scattered` if it has the tensor, and from post otherwise.
    """
    tensors, column = {}, 0
    for part in parts:
        values = scattered[part.name] if part.name in scattered else _values(post, part.name)
        values[part.rows] = matrix[:, column : column + values.shape[1]]
        column += values.shape[1]
        tensors[part.name] = values
    return tensors
