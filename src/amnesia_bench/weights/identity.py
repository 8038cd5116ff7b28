"""Identify a checkpoint by the hashes of its config, its headers and the data that was read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from amnesia_bench.records.artifacts import CheckpointIdentity, Parent
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.file_names import CONFIG

_HASHERS = 4


def identify(checkpoint: Checkpoint) -> CheckpointIdentity:
    """Return a checkpoint's path, the hash of its config, and the hash of each shard's header."""
    return CheckpointIdentity(
        path=str(checkpoint.folder),
        config_sha256=_sha256(checkpoint, CONFIG),
        headers_sha256={name: header.sha256 for name, header in checkpoint.shards.items()},
    )


def parent_by_contents(
    role: str, checkpoint: Checkpoint, extra_files: Iterable[str] = ()
) -> Parent:
    """Hash every shard of a checkpoint and return the checkpoint's entry for a manifest.

    Args:
        role: the role of the checkpoint in the artifact, for example "teacher".
        checkpoint: the checkpoint. `Checkpoint.held` can check later that its files have not
            changed since they were hashed.
        extra_files: the names of other files in the folder that affect results.

    Raises:
        StageFailedError: a file changed since the checkpoint was opened.
    """
    names = [*checkpoint.shards, *extra_files]
    with ThreadPoolExecutor(_HASHERS) as readers:
        hashes = readers.map(lambda name: _sha256(checkpoint, name), names)
        parent = as_parent(role, identify(checkpoint), dict(zip(names, hashes, strict=True)))
    checkpoint.held.check()
    return parent


def _sha256(checkpoint: Checkpoint, name: str) -> str:
    with checkpoint.held.reading(checkpoint.folder / name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_parent(role: str, identity: CheckpointIdentity, read_sha256: Mapping[str, str]) -> Parent:
    """Return the entry of a checkpoint for a manifest.

    Args:
        role: the role of the checkpoint in the artifact, for example "pre".
        identity: the hashes of its config and headers, which two fine-tunes of one model may share.
        read_sha256: the hashes of the tensors or files whose data was read, by name.
    """
    content = {
        "config": identity.config_sha256,
        "headers": dict(identity.headers_sha256),
        "read": dict(read_sha256),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Parent(role=role, location=identity.path, identity=f"sha256:{digest}")
