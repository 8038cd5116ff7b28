"""Find the files that belong to a checkpoint besides its weights, and those that do not."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.weights.file_names import CONFIG, INDEX, is_not_model_file, is_weights


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The files that a copy of a model leaves out: their number and size.

    `names` are the top-level names; those of folders end in a slash.
    """

    names: tuple[str, ...]
    files: int
    bytes: int

    def described(self) -> str:
        """Describe the files in one line."""
        names = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
        noun, verb = ("file", "is") if self.files == 1 else ("files", "are")
        megabytes = self.bytes / 1e6
        size = f"{self.files:,} {noun}, {megabytes:,.1f} MB"
        return f"{names} ({size}), which {verb} not part of the model."


def side_files(folder: Path) -> list[Path]:
    """Return the files that belong to a checkpoint besides its weights, relative to `folder`.

    These are config, tokenizer, templates and remote code, also in subfolders. Weights in any
    format, hidden files, leftovers of a training run and subfolders with another model are skipped.

    Raises:
        UserError: a file links out of the folder or is not a regular file, or its name cannot be
            printed.
        MissingEnvironmentError: a folder cannot be listed.
    """
    paths = []
    all_files = files_below(folder)
    inner_models = _inner_models(all_files)
    for path in all_files:
        if (
            str(path) == INDEX
            or is_not_model_file(path)
            or not inner_models.isdisjoint(path.parents)
        ):
            continue
        if not str(path).isprintable():  # a manifest or a message could not name it
            raise UserError(f"{folder}: the name of {str(path)!r} cannot be printed; rename it.")
        if _links_to_training_checkpoint(folder, path):
            continue
        _check_safe_to_copy(folder, path)
        paths.append(path)
    return paths


def left_out(folder: Path, kept: Iterable[str]) -> LeftOut:
    """Describe the files in `folder` that are not named in `kept`.

    Raises:
        MissingEnvironmentError: a folder cannot be listed.
    """
    kept_names = set(kept)
    others = [path for path in files_below(folder) if str(path) not in kept_names]
    top_level_names = {path.parts[0] + ("/" if len(path.parts) > 1 else "") for path in others}
    return LeftOut(
        names=tuple(sorted(top_level_names)),
        files=len(others),
        bytes=sum(_size(folder / path) for path in others),
    )


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # a running training job may remove its oldest checkpoint
        return 0


def files_below(folder: Path) -> list[Path]:
    """Return all files and links under `folder`, relative to it and sorted.

    Raises:
        MissingEnvironmentError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):  # removed in the meantime
            return
        raise MissingEnvironmentError(
            f"{error.filename}: cannot be listed ({error.strerror}).",
            hint="Check its permissions.",
        ) from error

    paths = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        paths += [(Path(parent) / name).relative_to(folder) for name in (*names, *links)]
    return sorted(paths)


def _inner_models(files: Iterable[Path]) -> set[Path]:
    """Return the subfolders that contain a complete model: another step, a merged copy."""
    in_subfolders = [path for path in files if len(path.parts) > 1]
    with_weights = {path.parent for path in in_subfolders if is_weights(path.name)}
    return with_weights & {path.parent for path in in_subfolders if path.name == CONFIG}


def _links_to_training_checkpoint(folder: Path, path: Path) -> bool:
    """Return whether a path links to a training checkpoint, such as `last -> checkpoint-500`."""
    link = folder / path
    if not link.is_symlink() or not link.is_dir():
        return False
    target, top = link.resolve(), folder.resolve()
    return target.is_relative_to(top) and is_not_model_file(target.relative_to(top))


def _check_safe_to_copy(folder: Path, path: Path) -> None:
    """Refuse a file that is not safe to copy into a folder that may be published.

    Weights and JSON are parsed, so they may be links to anywhere. A side file is copied whatever
    its contents: in a folder made by someone else, a `vocab.txt` that links to the user's private
    key would be uploaded with the repaired model. So a side file may only link to a regular file
    in the folder itself or, if the folder is a snapshot in the hub's cache, to that cache's blobs.
    """
    link = folder / path
    try:
        target = link.resolve()
    except RuntimeError:  # a link to itself, before Python 3.13
        raise UserError(f"{link}: is a link to itself.") from None
    hint = f"Make a copy without links first: cp -rL {shlex.quote(str(folder))} COPY"
    top = folder.resolve()
    snapshots = (parent for parent in top.parents if parent.name == "snapshots")
    allowed_folders = [top, *(parent.parent / "blobs" for parent in snapshots)]
    if not any(target.is_relative_to(allowed.resolve()) for allowed in allowed_folders):
        raise UserError(f"{link}: links to {target}, outside the checkpoint folder.", hint=hint)
    if not link.is_file():
        raise UserError(f"{link}: is neither a regular file nor a link to one.", hint=hint)
