"""Which checkpoint was it? Hashes of config and headers: cheap, and different for every save."""

from __future__ import annotations

import hashlib
import json

from amnesia_bench.records.artifacts import CheckpointIdentity, Parent
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.weights.checkpoint import CONFIG, Checkpoint


def identify(checkpoint: Checkpoint) -> CheckpointIdentity:
    """Return the path, the hash of the config and the hash of each shard's header."""
    headers = {}
    for name, header in checkpoint.shards.items():
        with header.path.open("rb") as file:
            headers[name] = hashlib.sha256(file.read(header.data_start)).hexdigest()
    return CheckpointIdentity(
        path=str(checkpoint.folder),
        config_sha256=sha256_of(checkpoint.folder / CONFIG),
        headers_sha256=headers,
    )


def as_parent(role: str, identity: CheckpointIdentity) -> Parent:
    """Return the entry of a manifest for a checkpoint that was used as `role`."""
    content = {"config": identity.config_sha256, "headers": dict(identity.headers_sha256)}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Parent(role=role, location=identity.path, identity=f"sha256:{digest}")
