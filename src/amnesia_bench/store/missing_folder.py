"""The error for a missing checkpoint folder; users often give the name of a hub model instead."""

from __future__ import annotations

import os
import re
from pathlib import Path

from amnesia_bench.errors import UserError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def no_folder(path: Path) -> UserError:
    """Return the error for a path that is not a folder; its hint depends on what the path is."""
    if path.exists():
        return UserError(
            f"{path}: is not a folder.", hint=f"Give the folder that contains it: {path.parent}"
        )
    name = str(path)
    if path.is_symlink():
        return UserError(f"{path}: is a broken link.")
    if not _HUB_NAME.fullmatch(name) or ("/" in name and path.parent.is_dir()):
        return UserError(f"{path}: no such folder.", hint="Check the path.")
    owner_and_name = name if "/" in name else f"OWNER/{name}"
    snapshot = _in_cache(name)
    hint = (
        f"The hub's cache contains it: give {snapshot}"
        if snapshot is not None
        else f"Download a model of the hub first: amnesia download {owner_and_name} "
        f"--out {path.name}"
    )
    return UserError(f"{path}: no such folder.", hint=hint)


def _in_cache(name: str) -> Path | None:
    """Return the newest snapshot of the model `name` in the cache of the hub client, or None.

    A name without an owner matches any owner. The location of the cache depends on the same
    environment variables as for the client.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{home}/huggingface"
    legacy = os.environ.get("HUGGINGFACE_HUB_CACHE")
    cache = Path(os.environ.get("HF_HUB_CACHE") or legacy or f"{home}/hub").expanduser()
    pattern = f"models--{name.replace('/', '--')}" if "/" in name else f"models--*--{name}"
    snapshots = [newest_snapshot(repository) for repository in sorted(cache.glob(pattern))]
    return next((snapshot for snapshot in snapshots if snapshot is not None), None)


def newest_snapshot(repository: Path) -> Path | None:
    """Return the newest snapshot with a config.json in the cached repository, or None."""
    snapshots = [path.parent for path in repository.glob("snapshots/*/config.json")]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
