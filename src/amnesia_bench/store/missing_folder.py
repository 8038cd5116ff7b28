"""What to say where a folder is asked for and there is none: often it is a name of the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from amnesia_bench.errors import UserError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def no_folder(path: Path) -> UserError:
    """Return what to say of a path that is no folder."""
    if path.exists():
        return UserError(
            f"{path}: is not a folder.", hint=f"Give the folder that it lies in: {path.parent}"
        )
    name = str(path)
    if path.is_symlink():
        return UserError(f"{path}: is a link that leads to nothing.")
    if not _HUB_NAME.fullmatch(name) or ("/" in name and path.parent.is_dir()):
        return UserError(f"{path}: no such folder.", hint="Is the path right?")
    owner_and_name = name if "/" in name else f"OWNER/{name}"
    there = _in_cache(name)
    hint = (
        f"The hub's cache has it: give {there}"
        if there is not None
        else f"A model of the hub is fetched first: amnesia download {owner_and_name} "
        f"--out {path.name}"
    )
    return UserError(f"{path}: no such folder.", hint=hint)


def _in_cache(name: str) -> Path | None:
    """Return the newest snapshot that the hub's client keeps of a model, whoever owns it.

    Where the cache is, the client's own variables say.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{home}/huggingface"
    old = os.environ.get("HUGGINGFACE_HUB_CACHE")
    cache = Path(os.environ.get("HF_HUB_CACHE") or old or f"{home}/hub").expanduser()
    pattern = f"models--{name.replace('/', '--')}" if "/" in name else f"models--*--{name}"
    found = [newest_snapshot(repository) for repository in sorted(cache.glob(pattern))]
    return next((snapshot for snapshot in found if snapshot is not None), None)


def newest_snapshot(repository: Path) -> Path | None:
    """Return the newest snapshot with a config in a repository of the hub's cache."""
    snapshots = [path.parent for path in repository.glob("snapshots/*/config.json")]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
