"""The content of restoration.json: the edits of a restore, and their proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amnesia_bench.records.artifacts import CheckpointIdentity
from amnesia_bench.records.roles import Role


@dataclass(frozen=True, kw_only=True)
class EditedTensor:
    """One tensor of which some or all rows were replaced.

    `rows` are half-open ranges of the first dimension; the sha256 are of the whole tensor's
    bytes in post's dtype; the norms are Frobenius norms over the replaced rows, None where they
    are not finite (post holds NaN or infinity, or a sum of squares overflows). A fused tensor
    is listed once per role.
    """

    layer: int
    role: Role
    name: str
    shard: str
    dtype: str
    rows: tuple[tuple[int, int], ...]
    planned_bytes: int
    values: int
    changed_values: int
    sha256_pre: str
    sha256_post: str
    sha256_restored: str
    norm_pre: float | None
    norm_post: float | None
    norm_post_minus_pre: float | None
    norm_restored_minus_post: float | None

    @property
    def relative_drift(self) -> float | None:
        """How far the fine-tune moved these rows: |post - pre| / |pre|."""
        return self._relative(self.norm_post_minus_pre)

    @property
    def relative_repair(self) -> float | None:
        """How far the restore moved them back: |restored - post| / |pre|."""
        return self._relative(self.norm_restored_minus_post)

    def _relative(self, norm: float | None) -> float | None:
        return norm / self.norm_pre if norm is not None and self.norm_pre else None


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The checks of the written files, which were read back after writing.

    Every byte of `compared_files` was compared with post overlaid with the planned edits, and each
    of the `planned_tensors` was hashed in the finished files. `linked_files` are hardlinks to the
    files of post and were not read.
    """

    compared_files: tuple[str, ...]
    linked_files: tuple[str, ...]
    compared_bytes: int
    linked_bytes: int
    planned_bytes: int
    planned_tensors: int
    untouched_tensors: int


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """A finished restore, or a planned one of a dry run, whose `out` and `proof` are None.

    `left_out` lists the top-level entries of post that were not copied to out, or not completely.
    Folders end in a slash.
    """

    schema_version: int
    tool_version: str
    variant: Mapping[str, object]
    family: str
    softmax_layers: tuple[int, ...]
    restored_layers: tuple[int, ...]
    pre: CheckpointIdentity
    post: CheckpointIdentity
    out: str | None
    cast: bool
    tensors: tuple[EditedTensor, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    proof: Proof | None
