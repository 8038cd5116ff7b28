"""How two checkpoints differ, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """One tensor that is not the same in A and B, or the rows of one role in it.

    A tensor that several roles share (a fused projection) is listed once per role, with the numbers
    of that role's rows; one of them may not have changed. `name` is A's, `name_b` B's. `role` is
    None outside the attention layers. The numbers are None where they cannot be compared: another
    shape, not floating-point, or (the norms) NaN or infinity in it.
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
    """Everything in which two checkpoints differ; empty lists mean byte-identical tensors.

    `identical` and `renamed` count tensors: byte for byte the same, and of another name in B.
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
