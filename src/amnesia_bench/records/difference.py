"""The difference of two checkpoints, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """One tensor that differs between A and B, or the rows of one role in it.

    A tensor that several roles share (a fused projection) is listed once per role, with the numbers
    of that role's rows, which may be unchanged. `name` is its name in A, `name_b` in B. `role` is
    None outside the attention layers. The numbers are None if they cannot be computed: the shapes
    differ, the dtype is not floating-point, or (for norms) the tensor has NaN or infinity.
    """

    name: str
    name_b: str
    layer: int | None
    role: str | None
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    values: int | None
    changed_values: int | None
    norm_a: float | None
    norm_b_minus_a: float | None

    @property
    def relative_drift(self) -> float | None:
        """|B - A| / |A|, Frobenius."""
        if self.norm_a is None or self.norm_b_minus_a is None:
            return None
        return self.norm_b_minus_a / self.norm_a if self.norm_a else float("inf")


@dataclass(frozen=True, kw_only=True)
class CheckpointDifference:
    """All differences between two checkpoints; empty lists mean byte-identical tensors.

    `identical` counts byte-identical tensors, `renamed` tensors that have another name in B.
    """

    a: str
    b: str
    family: str | None
    softmax_layers: tuple[int, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    identical: int
    renamed: int
    different: tuple[TensorDifference, ...]
