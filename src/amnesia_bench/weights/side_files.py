"""What belongs to a checkpoint besides its weights, and what does not."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.weights.file_names import CONFIG, INDEX, is_weights, of_a_run


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What a copy of a model leaves behind: names at the top of the folder, and how much it is.

    Folders end in a slash.
    """

    names: tuple[str, ...]
    files: int
    bytes: int

    def described(self) -> str:
        """Say in one line what and how much it is."""
        some = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
        return (
            f"{self.files:,} file{'' if self.files == 1 else 's'} of "
            f"{self.bytes / 1e6:,.1f} MB, no part of the model ({some})."
        )


def side_files(folder: Path) -> list[Path]:
    """Return what belongs to a checkpoint besides its weights, relative to `folder`.

    Config, tokenizer, templates, remote code, in subfolders too. Weights in any form, hidden files,
    what a training run left and subfolders that hold a model of their own are left out.

    Raises:
        UserError: one of them leads out of the folder, or is no plain file.
        MissingEnvironmentError: a folder may not be listed.
    """
    found = []
    everything = files_below(folder)
    inner = _inner_models(everything)
    for path in everything:
        if str(path) == INDEX or of_a_run(path) or not inner.isdisjoint(path.parents):
            continue
        if not str(path).isprintable():  # it could not be named in a manifest, nor in a message
            raise UserError(f"{folder}: the name of {str(path)!r} cannot be printed; rename it.")
        if _is_link_to_a_run(folder, path):
            continue
        _check_belongs(folder, path)
        found.append(path)
    return found


def left_out(folder: Path, kept: Iterable[str]) -> LeftOut:
    """Describe everything in `folder` but the files named in `kept`.

    Raises:
        MissingEnvironmentError: a folder may not be listed.
    """
    taken = set(kept)
    others = [path for path in files_below(folder) if str(path) not in taken]
    tops = {path.parts[0] + ("/" if len(path.parts) > 1 else "") for path in others}
    return LeftOut(
        names=tuple(sorted(tops)),
        files=len(others),
        bytes=sum(_size(folder / path) for path in others),
    )


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # of a run that goes on and removes its oldest step
        return 0


def files_below(folder: Path) -> list[Path]:
    """Return everything under `folder` but plain folders, relative to it, in order.

    Raises:
        MissingEnvironmentError: a folder may not be listed.
    """

    def fail(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):  # removed meanwhile
            return
        raise MissingEnvironmentError(
            f"{error.filename}: may not be listed ({error.strerror}).",
            hint="Check its permissions.",
        ) from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [(Path(parent) / name).relative_to(folder) for name in (*names, *links)]
    return sorted(found)


def _inner_models(files: Iterable[Path]) -> set[Path]:
    """Return the subfolders that hold a whole model: another step, a merged copy."""
    below = [path for path in files if len(path.parts) > 1]
    with_weights = {path.parent for path in below if is_weights(path.name)}
    return with_weights & {path.parent for path in below if path.name == CONFIG}


def _is_link_to_a_run(folder: Path, path: Path) -> bool:
    """Tell `last -> checkpoint-500` from a link to a folder that belongs to the model."""
    link = folder / path
    if not link.is_symlink() or not link.is_dir():
        return False
    target, top = link.resolve(), folder.resolve()
    return target.is_relative_to(top) and of_a_run(target.relative_to(top))


def _check_belongs(folder: Path, path: Path) -> None:
    """Refuse what must not be copied blindly into a folder that may be published.

    Weights and JSON are read as what they are, so a link of theirs may lead anywhere. A side file
    is copied whatever it holds: from a folder made by others, a `vocab.txt` that links to one's
    private key would be uploaded with the repaired model. So its link may lead to a plain file in
    the folder itself, or to the blobs of the hub's cache, of which this folder is a snapshot.
    """
    link = folder / path
    try:
        target = link.resolve()
    except RuntimeError:  # of a link that leads to itself, before Python 3.13
        raise UserError(f"{link}: is a link that leads to itself.") from None
    hint = f"Make a copy without links first: cp -rL {shlex.quote(str(folder))} COPY"
    top = folder.resolve()
    snapshots = (parent for parent in top.parents if parent.name == "snapshots")
    places = [top, *(parent.parent / "blobs" for parent in snapshots)]
    if not any(target.is_relative_to(place.resolve()) for place in places):
        raise UserError(f"{link}: leads out of the checkpoint folder, to {target}.", hint=hint)
    if not link.is_file():
        raise UserError(f"{link}: is no plain file, and no link to one.", hint=hint)
