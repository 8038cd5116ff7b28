"""The content of restoration.json: the edits of a restore, and the checks of its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amnesia_bench.records.artifacts import CheckpointIdentity
from amnesia_bench.records.roles import Role


@dataclass(frozen=True, kw_only=True)
class EditedTensor:
    """A tensor of which some or all rows were replaced.

    `layer` is None outside the decoder's layers, and `role` is None if the tensor has no role in a
    softmax layer, or several. `rows` are the replaced rows, as half-open ranges of the first
    dimension. The hashes cover the bytes of the complete tensor in post's dtype. The norms are
    Frobenius norms over the replaced rows; a norm is None if it is not finite (post contains NaN or
    infinity, or the sum of squares overflows). A fused tensor is listed once per role.
    """

    layer: int | None
    role: Role | None
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
        """The relative change of these rows by the fine-tune, |post - pre| / |pre|."""
        return self._relative(self.norm_post_minus_pre)

    @property
    def relative_repair(self) -> float | None:
        """The relative change of these rows by the restore, |restored - post| / |pre|."""
        return self._relative(self.norm_restored_minus_post)

    def _relative(self, norm: float | None) -> float | None:
        return norm / self.norm_pre if norm is not None and self.norm_pre else None


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The result of checking the output files, which were read back after writing.

    Every byte of the `compared_files` was compared with the planned content (post, with the planned
    edits applied), and each of the `planned_tensors` edited tensors was hashed in the finished
    files. The `linked_files` are hard links to files of post, and were not read.
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
    """A finished restore, or the plan of a dry run (then `out` and `proof` are None).

    `left_out` lists the top-level files and folders of post that were not copied to `out`, or not
    completely; the names of folders end in a slash.
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
