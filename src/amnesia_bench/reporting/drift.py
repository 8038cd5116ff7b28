"""Read the drift of W_Q and W_K by layer (Figures 5 and 6) from the output of restore or diff."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.difference import CheckpointDifference
from amnesia_bench.records.report import DriftCurve, LayerDrift
from amnesia_bench.records.restoration import Restoration
from amnesia_bench.records.roles import Role
from amnesia_bench.reporting.paths import display_path
from amnesia_bench.requests.experiments import LabelledDrift
from amnesia_bench.store.files import read_json

_ROLES = (Role.Q.value, Role.K.value)


def read_drift(source: LabelledDrift, out: Path) -> DriftCurve:
    """Read the drift of each layer from a file, whose path is recorded relative to `out`.

    `out` is the report's folder.

    Raises:
        UserError: the file is neither a restoration nor a difference, or contains no drift of W_Q
            or W_K.
    """
    path = source.file
    data = read_json(path)
    if isinstance(data, dict) and "variant" in data:
        norms = _of_restoration(codec.from_json(Restoration, data, str(path)))
    elif isinstance(data, dict) and "only_in_a" in data:
        norms = _of_difference(codec.from_json(CheckpointDifference, data, str(path)))
    else:
        raise UserError(
            f"{path}: neither a restoration.json nor the output of `amnesia diff --json`",
            hint="amnesia diff PRE POST --json > drift.json",
        )
    layers = _layers(norms)
    if not layers:
        raise UserError(f"{path}: contains no drift of W_Q or W_K")
    label = source.label or path.parent.name or path.stem
    return DriftCurve(label=label, source=display_path(path, out), layers=layers)


# For each tensor: layer, role, |a| and |b - a|.
_Norms = Iterable[tuple[int, str, float, float]]


def _of_restoration(restoration: Restoration) -> _Norms:
    for tensor in restoration.tensors:
        known = tensor.norm_pre is not None and tensor.norm_post_minus_pre is not None
        if known and tensor.layer is not None and tensor.role is not None:
            drift = tensor.norm_post_minus_pre or 0.0
            yield tensor.layer, tensor.role.value, tensor.norm_pre or 0.0, drift


def _of_difference(difference: CheckpointDifference) -> _Norms:
    for tensor in difference.different:
        known = tensor.norm_a is not None and tensor.norm_b_minus_a is not None
        if known and tensor.layer is not None and tensor.role is not None:
            yield tensor.layer, tensor.role, tensor.norm_a or 0.0, tensor.norm_b_minus_a or 0.0


def _layers(norms: _Norms) -> tuple[LayerDrift, ...]:
    """Return the relative drift of each layer and role, combined over its tensors."""
    squares: defaultdict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for layer, role, norm, change in norms:
        if role in _ROLES:
            squares[layer, role][0] += norm**2
            squares[layer, role][1] += change**2
    return tuple(
        LayerDrift(layer=layer, role=role, drift=math.sqrt(change / norm))
        for (layer, role), (norm, change) in sorted(squares.items())
        if norm
    )
