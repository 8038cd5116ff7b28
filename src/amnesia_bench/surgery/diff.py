"""Which tensors of two checkpoints differ, and by how much. Streams; never holds a whole tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from amnesia_bench.errors import UserError
from amnesia_bench.records.difference import CheckpointDifference, TensorDifference
from amnesia_bench.records.roles import AttentionMap, LayerKind
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.numbers import FLOAT_DTYPES, decode

PIECE_VALUES = 1 << 15
LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def diff_checkpoints(folder_a: Path, folder_b: Path) -> CheckpointDifference:
    """Compare every tensor of two folders, by bytes first and then by values.

    Unlike a restore this takes any two checkpoints: other shapes and dtypes are differences, and
    an architecture without an attention map is compared without roles.

    Raises:
        UserError: one of the folders is not a whole checkpoint.
    """
    a, b = open_checkpoint(folder_a), open_checkpoint(folder_b)
    attention = _attention_or_none(a)
    roles = {tensor.name: tensor.role.value for tensor in attention.tensors} if attention else {}
    common = [name for name in a.tensors if name in b.tensors]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        compared = pool.map(lambda name: _compare(a, b, name, roles.get(name)), common)
        different = [difference for difference in compared if difference is not None]
    return CheckpointDifference(
        a=str(folder_a),
        b=str(folder_b),
        family=attention.family if attention else None,
        softmax_layers=(attention.layers(LayerKind.FULL, LayerKind.SLIDING) if attention else ()),
        only_in_a=tuple(sorted(a.tensors.keys() - b.tensors.keys())),
        only_in_b=tuple(sorted(b.tensors.keys() - a.tensors.keys())),
        identical=len(common) - len(different),
        different=tuple(
            sorted(different, key=lambda d: (d.layer is None, d.layer or 0, d.role or "~", d.name))
        ),
    )


def _attention_or_none(checkpoint: Checkpoint) -> AttentionMap | None:
    try:
        return attention_map(checkpoint.config, checkpoint.shapes)
    except UserError:
        return None


def _compare(a: Checkpoint, b: Checkpoint, name: str, role: str | None) -> TensorDifference | None:
    (_, entry_a), (_, entry_b) = a.tensors[name], b.tensors[name]
    same_shape = entry_a.shape == entry_b.shape
    if (
        same_shape
        and entry_a.dtype == entry_b.dtype
        and all(piece_a == piece_b for piece_a, piece_b in _pieces(a, b, name))
    ):
        return None
    comparable = same_shape and {entry_a.dtype, entry_b.dtype} <= FLOAT_DTYPES.keys()
    values, changed, norm, moved = _numbers(a, b, name) if comparable else (None,) * 4
    number = LAYER_NUMBER.search(name)
    return TensorDifference(
        name=name,
        layer=int(number.group(1)) if number else None,
        role=role,
        shape_a=entry_a.shape,
        shape_b=entry_b.shape,
        dtype_a=entry_a.dtype,
        dtype_b=entry_b.dtype,
        values=values,
        changed_values=changed,
        norm_a=norm,
        norm_b_minus_a=moved,
    )


def _numbers(
    a: Checkpoint, b: Checkpoint, name: str
) -> tuple[int, int, float | None, float | None]:
    """Return how many values there are, how many changed, |A| and |B - A| where finite."""
    dtype_a, dtype_b = a.tensors[name][1].dtype, b.tensors[name][1].dtype
    values = changed = 0
    scale = moved = 0.0
    for piece_a, piece_b in _pieces(a, b, name):
        values_a, values_b = decode(piece_a, dtype_a), decode(piece_b, dtype_b)
        values += values_a.size
        changed += int(np.count_nonzero(values_a != values_b))
        scale += float(np.vdot(values_a, values_a))
        with np.errstate(invalid="ignore"):
            drift = values_b - values_a
            moved += float(np.vdot(drift, drift))
    norms = (float(np.sqrt(scale)), float(np.sqrt(moved)))
    norm, drifted = (norm if np.isfinite(norm) else None for norm in norms)
    return values, changed, norm, drifted


def _pieces(a: Checkpoint, b: Checkpoint, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the same PIECE_VALUES values of both, as raw bytes."""
    yield from zip(a.pieces(name, PIECE_VALUES), b.pieces(name, PIECE_VALUES), strict=True)
