"""Separate a checkpoint's side files, such as config and tokenizer, from files to leave out."""

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
    """The files that are left out of a copy of a model.

    `names` are the top-level names; the name of a folder ends in a slash. `files` is the number of
    files at all levels, and `bytes` is their total size.
    """

    names: tuple[str, ...]
    files: int
    bytes: int

    def described(self) -> str:
        """Return a one-line description for messages."""
        names = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
        noun, verb = ("file", "is") if self.files == 1 else ("files", "are")
        megabytes = self.bytes / 1e6
        size = f"{self.files:,} {noun}, {megabytes:,.1f} MB"
        return f"{names} ({size}), which {verb} not part of the model."


def side_files(folder: Path) -> list[Path]:
    """Return the side files of a checkpoint, as paths relative to `folder`.

    Side files are the config, tokenizer, templates and remote code, also in subfolders. The index,
    weights in any format, hidden files, leftovers of a training run and subfolders with another
    model are skipped.

    Raises:
        UserError: a file is neither regular nor a link to a regular file, a link points outside the
            folder (and the hub's cache), or a name cannot be printed.
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
        if not str(path).isprintable():  # unusable in a manifest or a message
            raise UserError(f"{folder}: the name of {str(path)!r} cannot be printed; rename it.")
        if _links_to_training_checkpoint(folder, path):
            continue
        _check_safe_to_copy(folder, path)
        paths.append(path)
    return paths


def left_out(folder: Path, kept: Iterable[str]) -> LeftOut:
    """Return the files in `folder`, and its subfolders, whose paths are not in `kept`.

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
    except FileNotFoundError:  # for example, a running training job removed its oldest checkpoint
        return 0


def files_below(folder: Path) -> list[Path]:
    """Return the sorted paths of all files and links under `folder`, relative to it.

    Raises:
        MissingEnvironmentError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):  # the folder was removed in the meantime
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
    """Return the subfolders with a model of their own, such as another step or a merged copy."""
    in_subfolders = [path for path in files if len(path.parts) > 1]
    with_weights = {path.parent for path in in_subfolders if is_weights(path.name)}
    return with_weights & {path.parent for path in in_subfolders if path.name == CONFIG}


def _links_to_training_checkpoint(folder: Path, path: Path) -> bool:
    """Return whether a path is a link to a training checkpoint, as in `last -> checkpoint-500`."""
    link = folder / path
    if not link.is_symlink() or not link.is_dir():
        return False
    target, top = link.resolve(), folder.resolve()
    return target.is_relative_to(top) and is_not_model_file(target.relative_to(top))


def _check_safe_to_copy(folder: Path, path: Path) -> None:
    """Refuse a file that is not safe to copy into a folder that may be published.

    Weights and the config are parsed, so they may link to any file (see `checkpoint.plain_file`).
    A side file is copied whatever its contents are. If someone else made the folder, its
    `vocab.txt` could link to the user's private key, which would then be published with the
    repaired model. So a side file may link only to a regular file in the folder itself or, if the
    folder is a snapshot in the hub's cache, to a file in the blobs of that cache.
    """
    link = folder / path
    try:
        target = link.resolve()
    except RuntimeError:  # from a link to itself, before Python 3.13
        raise UserError(f"{link}: is a link to itself.") from None
    hint = f"Make a copy without links first: cp -rL {shlex.quote(str(folder))} COPY"
    top = folder.resolve()
    snapshots = (parent for parent in top.parents if parent.name == "snapshots")
    allowed_folders = [top, *(parent.parent / "blobs" for parent in snapshots)]
    if not any(target.is_relative_to(allowed.resolve()) for allowed in allowed_folders):
        raise UserError(f"{link}: links to {target}, outside the checkpoint folder.", hint=hint)
    if not link.is_file():
        raise UserError(f"{link}: is neither a regular file nor a link to one.", hint=hint)
