"""The differences between two checkpoints A and B, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """A tensor that differs between checkpoints A and B, or the rows of one role in such a tensor.

    A tensor that several roles share (a fused projection) is listed once per role. The counts and
    norms then cover the rows of that role only, which may be unchanged. `name` is the tensor's name
    in A, `name_b` its name in B. `role` is None outside the attention layers. The counts and norms
    are None if they cannot be computed: if the shapes differ, if the dtype is not floating-point,
    or (norms only) if the tensor contains NaN or infinity.
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
        """The relative difference |B - A| / |A| in Frobenius norms; None without norms."""
        if self.norm_a is None or self.norm_b_minus_a is None:
            return None
        return self.norm_b_minus_a / self.norm_a if self.norm_a else float("inf")


@dataclass(frozen=True, kw_only=True)
class CheckpointDifference:
    """All differences between the tensors of two checkpoints A and B.

    If `only_in_a`, `only_in_b` and `different` are empty, all tensors are byte-identical.
    `identical` is the number of byte-identical tensors, and `renamed` the number of tensors whose
    name in B differs from that in A.
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
