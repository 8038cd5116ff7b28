"""Measure how far W_Q and W_K of each head moved between two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.records.roles import AttentionMap, Role
from amnesia_bench.surgery.compat import check_compatible
from amnesia_bench.surgery.layer_values import Pair
from amnesia_bench.surgery.pairing import pair_tensors, with_post_names
from amnesia_bench.surgery.plan import PlannedTensor
from amnesia_bench.surgery.tensor_pieces import pieces
from amnesia_bench.weights.attention_map import ROUTING, attention_map
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.quantisation import refuse_quantised

_Maps = tuple[AttentionMap, AttentionMap]
# The sums of the squares of post - pre and of pre, by role, layer and head of that role.
_Squares = Mapping[tuple[Role, int, int], NDArray[np.float64]]


def head_drift(pre: Path, post: Path) -> Mapping[tuple[Role, int, int], float | None]:
    """Return |post - pre| / |pre| (Frobenius norms) of each head of W_Q and W_K, with biases.

    Returns:
        A map from role, layer and head to the drift; the head is a query head for the role Q, and a
        KV head for the role K. A drift that is not finite is None. Projections whose rows do not
        belong to heads, or that a layer shares with another one, are missing.

    Raises:
        UserError: the two folders are not checkpoints of one model with unquantised W_Q and W_K.
        StageFailedError: a file changed while it was read.
    """
    checkpoints, maps = _open(pre, post)
    check_compatible(*checkpoints, maps, ROUTING)
    return {key: _ratio(total) for key, total in _squares(checkpoints, maps).items()}


def query_head_drift(pre: Path, post: Path) -> Mapping[tuple[int, int], float]:
    """Return the drift of W_Q and W_K together, by layer and query head.

    W_K of a query head is that of its KV head. Heads are left out if one of the two projections has
    no drift: it is stored as an adapter, or in another shape, or belongs to another layer.

    Raises:
        UserError: a folder is not a checkpoint with softmax layers and unquantised W_Q and W_K.
        StageFailedError: a file changed while it was read.
    """
    checkpoints, maps = _open(pre, post)
    squares = _squares(checkpoints, maps)
    group = maps[1].num_query_heads // maps[1].num_kv_heads
    drifts = {
        (layer, head): _ratio(total + squares[Role.K, layer, head // group])
        for (role, layer, head), total in squares.items()
        if role is Role.Q and (Role.K, layer, head // group) in squares
    }
    return {head: drift for head, drift in drifts.items() if drift is not None}


def _open(pre: Path, post: Path) -> tuple[tuple[Checkpoint, Checkpoint], _Maps]:
    first, second = open_checkpoint(pre), open_checkpoint(post)
    return (first, second), (
        attention_map(first.config, first.shapes, ROUTING),
        attention_map(second.config, second.shapes, ROUTING),
    )


def _squares(checkpoints: tuple[Checkpoint, Checkpoint], maps: _Maps) -> _Squares:
    pre = with_post_names(checkpoints[0], pair_tensors(*checkpoints, maps))
    pair = Pair(pre=pre, post=checkpoints[1], attention=maps[1])
    projections = [
        tensor
        for tensor in maps[1].tensors
        if tensor.role in ROUTING
        and tensor.rows is not None
        and tensor.name in pre.tensors
        and pre.tensors[tensor.name][1].shape == pair.post.tensors[tensor.name][1].shape
    ]
    for checkpoint in (pair.pre, pair.post):
        refuse_quantised(checkpoint, [tensor.name for tensor in projections])
    squares: dict[tuple[Role, int, int], NDArray[np.float64]] = {}
    for tensor in projections:
        assert tensor.rows is not None, tensor
        rows = [tensor.rows.rows(head) for head in range(tensor.rows.num_heads)]
        heads = [
            PlannedTensor(
                layer=tensor.layer,
                role=tensor.role,
                name=tensor.name,
                rows=((row.start, row.stop),),
                adapter=False,
            )
            for row in rows
        ]
        for head, total in enumerate(_squares_of(pair, heads)):
            key = tensor.role, tensor.layer, head
            squares[key] = squares.get(key, 0.0) + total  # a role may have a matrix and a bias
    for checkpoint in checkpoints:
        checkpoint.held.check()
    return squares


def _squares_of(pair: Pair, heads: Sequence[PlannedTensor]) -> NDArray[np.float64]:
    """Return the two sums of squares of each head of a tensor [heads, 2]."""
    totals = np.zeros((len(heads), 2))
    for piece in pieces(pair, heads):
        if piece.owner is not None:
            a, b = piece.values()
            with np.errstate(invalid="ignore", over="ignore"):
                totals[piece.owner] += [np.vdot(b - a, b - a), np.vdot(a, a)]
    return totals


def _ratio(squares: NDArray[np.float64]) -> float | None:
    moved, scale = squares
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = float(np.sqrt(moved / scale))
    return ratio if np.isfinite(ratio) else None
