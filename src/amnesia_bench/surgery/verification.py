"""Check an artifact against its manifest and, if it is a restored checkpoint, its record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.restoration import Restoration
from amnesia_bench.requests.checkpoints import VerifyRequest
from amnesia_bench.store.files import read_json
from amnesia_bench.store.hashing import read_manifest, verify_manifest
from amnesia_bench.store.missing_folder import no_folder
from amnesia_bench.surgery.restoration import RESTORATION, RESTORED
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.file_names import CONFIG


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of a verification; the artifact is intact if there are no findings.

    `hashed_files` were checked by sha256, `dated_files` (hard links) by size and modification time.
    `restored_tensors` is the number of tensors in the restoration record.
    """

    folder: str
    hashed_files: tuple[str, ...]
    dated_files: tuple[str, ...]
    restored_tensors: int
    findings: tuple[str, ...]


def verify(request: VerifyRequest) -> Verification:
    """Check every file of an artifact against its manifest, and tensors against their record.

    If the artifact is a checkpoint, it must also open without errors. If it is a restored one, the
    header of every shard and the sha256 of every restored tensor are compared with the restoration
    record.

    Raises:
        UserError: the folder does not exist, or it has no intact manifest.
    """
    folder = request.folder
    if not folder.is_dir():
        raise no_folder(folder)
    manifest = read_manifest(folder)
    findings = [f"{finding.path}: {finding.problem}" for finding in verify_manifest(folder)]
    restored = 0
    is_checkpoint = any(entry.path == CONFIG for entry in manifest.files)
    try:
        checkpoint = open_checkpoint(folder) if is_checkpoint else None
        if checkpoint is not None and manifest.kind == RESTORED:
            path = folder / RESTORATION
            record = codec.from_json(Restoration, read_json(path), str(path))
            restored = len(record.tensors)
            findings += _wrong_tensors(checkpoint, record)
    except UserError as error:
        findings.append(error.what)
    return Verification(
        folder=str(folder),
        hashed_files=tuple(e.path for e in manifest.files if e.sha256 is not None),
        dated_files=tuple(e.path for e in manifest.files if e.sha256 is None),
        restored_tensors=restored,
        findings=tuple(findings),
    )


def _wrong_tensors(checkpoint: Checkpoint, record: Restoration) -> Iterator[str]:
    # The manifest has no sha256 of a hard-linked shard, but the record has that of its header.
    for name, header in checkpoint.shards.items():
        if header.sha256 != record.post.headers_sha256.get(name):
            yield f"{name}: its header differs from post's"
    for tensor in record.tensors:
        if tensor.name not in checkpoint.tensors:
            yield f"{tensor.name}: is missing"
        elif hashlib.sha256(checkpoint.read(tensor.name)).hexdigest() != tensor.sha256_restored:
            yield f"{tensor.name}: differs from the restored tensor (sha256)"
