"""The layout of the store. Only this module builds the paths of artifacts and unfinished work.

<store>/<kind>/<id>/                a finished artifact
<store>/<kind>/<id>/manifest.json   written last
<store>/<kind>/.<id>.tmp-<token>/   work in progress, or the remains of a killed attempt
<store>/<kind>/.<id>.parts/         completed parts of the work, from which the next attempt resumes
<store>/<kind>/.<id>.lease/         the lease of the process that writes <id>
<store>/<kind>/<id>.training/       checkpoints and metrics of the training run that writes <id>
<store>/stages/<id>/                specs and logs of the stage that writes <id>
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.store.files import nearest_existing

MANIFEST = "manifest.json"
STORE_VARIABLE = "AMNESIA_STORE"

# File systems allow 255 bytes per name, and the names of hidden siblings are longer than the id.
_MAX_NAME_BYTES = 200
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")


def store_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the store: $AMNESIA_STORE if set, or a folder in the user's cache."""
    if root := environ.get(STORE_VARIABLE):
        return Path(root).expanduser()
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "amnesia_bench"


def store_of(given: Path | None) -> Path:
    """Return the absolute path of the store that a command uses; it may not exist yet.

    Args:
        given: the store that the user names; None selects `store_root()`.

    Raises:
        UserError: the path of the store, or of a folder above it, is a file.
        MissingEnvironmentError: a folder above the store cannot be read.
    """
    store = (given or store_root()).resolve()
    try:
        existing = nearest_existing(store)
        is_folder = existing.is_dir()
    except PermissionError as error:
        raise MissingEnvironmentError(
            f"{store}: no permission to read the store",
            hint="Use a store of your own: --store or $AMNESIA_STORE.",
        ) from error
    if not is_folder:
        raise UserError(
            f"{existing}: is a file, but the store must be a folder",
            hint="Choose another folder with --store or $AMNESIA_STORE.",
        )
    return store


def artifact_path(root: Path, kind: str, artifact_id: str) -> Path:
    """Return the folder of an artifact.

    Raises:
        UserError: kind or id is too long, does not start with a letter or digit, or has characters
            other than letters, digits and `._=+-`.
    """
    for what, name in (("kind", kind), ("id", artifact_id)):
        if not _ID.fullmatch(name) or len(name) > _MAX_NAME_BYTES:
            raise UserError(
                f"artifact {what} {name!r}: expected letters, digits and ._=+- only, "
                f"not starting with a dot, at most {_MAX_NAME_BYTES} characters"
            )
    return root / kind / artifact_id


def stage_path(root: Path, artifact_id: str) -> Path:
    """Return the folder with the specs and the logs of the stage that writes this artifact."""
    return artifact_path(root, "stages", artifact_id)


def check_final(final: Path) -> None:
    """Refuse an invalid name for an output folder.

    Hidden names are refused because such a folder could be confused with work in progress.

    Raises:
        UserError: the last part of the path is empty, `..`, hidden or too long.
    """
    name = final.name
    if not name or name.startswith(".") or len(os.fsencode(name)) > _MAX_NAME_BYTES:
        raise UserError(
            f"{final}: not a name for an output folder (empty, hidden, or over "
            f"{_MAX_NAME_BYTES} bytes)",
            hint="Name a new folder, such as results/restored.",
        )


def lease_path(final: Path) -> Path:
    """Return the lease folder of a final folder, which contains the claims."""
    return final.with_name(f".{final.name}.lease")


def new_working_path(final: Path) -> Path:
    """Return an unused hidden path next to a final folder, so on the same file system."""
    return final.with_name(f".{final.name}.tmp-{secrets.token_hex(8)}")


def training_path(final: Path) -> Path:
    """Return the folder in which a training run keeps the state from which it resumes."""
    return final.with_name(f"{final.name}.training")


def resumable_path(final: Path) -> Path:
    """Return the hidden folder next to a final folder from which the next attempt resumes."""
    return final.with_name(f".{final.name}.parts")


def leftover_paths(final: Path) -> list[Path]:
    """Return the working folders of earlier attempts at this final folder."""
    # The token has a fixed length, so the pattern for `a` does not match the folders of `a.tmp-b`.
    pattern = re.compile(re.escape(f".{final.name}.tmp-") + r"[0-9a-f]{16}")
    return sorted(path for path in final.parent.iterdir() if pattern.fullmatch(path.name))
