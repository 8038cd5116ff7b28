"""Read cells and their provenance from the folders that evaluations wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Manifest, Parent
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.records.report import Origin
from amnesia_bench.reporting.artifact_files import ArtifactFiles
from amnesia_bench.reporting.paths import display_path, typed_path
from amnesia_bench.requests.experiments import LabelledCells
from amnesia_bench.store.files import read_json
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.layout import MANIFEST

CELL_FILES = ("cell.json", "cells.json")
ANSWERS = "generations.jsonl"


@dataclass(frozen=True, kw_only=True)
class CellEntry:
    """A cell with its labels in the report, the path of its file, and its origin.

    `artifact` is the published folder that contains the file, or None. `ancestry` has the manifests
    of this artifact and of its ancestors that are on this machine. `files` reads and caches the
    other files of the same folder.
    """

    model: str
    method: str
    seed: str | None
    cell: Cell
    path: Path
    artifact: Path | None
    origin: Origin
    ancestry: Mapping[Path, Manifest] = field(default_factory=dict, compare=False, repr=False)
    files: ArtifactFiles = field(default_factory=ArtifactFiles, compare=False, repr=False)


def read_source(
    source: LabelledCells, out: Path, files: ArtifactFiles
) -> tuple[tuple[CellEntry, ...], tuple[str, ...]]:
    """Read every cell below a folder; if there are none, return a note with the reason.

    Args:
        source: the folder, and the labels of its cells.
        out: the report's folder, relative to which paths are recorded.
        files: the file cache of this report.

    Raises:
        UserError: the folder does not exist, or a file is cut off or differs from its manifest.
    """
    if not source.folder.is_dir():
        raise UserError(f"{source.folder}: no such folder of cells")
    entries: list[CellEntry] = []
    for path in _visible(source.folder, *CELL_FILES):
        artifact = _artifact_of(path, source.folder)
        files.check_hash(path, artifact)
        for cell in _read_cells(path, artifact):
            ancestry = _ancestry(artifact, cell, files)
            entries.append(
                CellEntry(
                    model=source.model or cell.model,
                    method=source.method or cell.method,
                    seed=source.seed,
                    cell=cell,
                    path=path,
                    artifact=artifact,
                    origin=_origin(source.seed, path, artifact, ancestry, out),
                    ancestry=ancestry,
                    files=files,
                )
            )
    if entries:
        return tuple(entries), ()
    answers = any(_visible(source.folder, ANSWERS))
    reason = "answers but no cells: unfinished or not scored" if answers else "no cells yet"
    return (), (f"{typed_path(source.folder)}: {reason}",)


def _visible(folder: Path, *names: str) -> Iterator[Path]:
    """Yield the sorted paths of files with these names, except in hidden (unfinished) folders."""
    for path in sorted(path for name in names for path in folder.rglob(name)):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _read_cells(path: Path, artifact: Path | None) -> Iterator[Cell]:
    try:
        data = read_json(path)
        if isinstance(data, list):
            for i, item in enumerate(data):
                yield codec.from_json(Cell, item, f"{path}[{i}]")
        else:
            yield codec.from_json(Cell, data, str(path))
    except UserError as error:
        hint = (
            "It was cut off or changed by hand: remove it and run its evaluation again."
            if artifact is None
            # The file's hash was correct, so the file is not damaged.
            else "Another version of amnesia-bench wrote this file: use that version."
        )
        raise UserError(error.what, hint=hint) from error


def _origin(
    seed: str | None,
    path: Path,
    artifact: Path | None,
    ancestry: Mapping[Path, Manifest],
    out: Path,
) -> Origin:
    dirty = [folder for folder, manifest in ancestry.items() if manifest.provenance.dirty]
    return Origin(
        seed=seed,
        path=display_path(path if artifact is None else artifact / MANIFEST, out),
        manifest_sha256=None if artifact is None else sha256_of(artifact / MANIFEST),
        stage=(artifact or path.parent).name,
        commit=None if artifact is None else ancestry[artifact].provenance.commit,
        dirty=tuple(display_path(folder / MANIFEST, out) for folder in dirty),
    )


def _artifact_of(path: Path, top: Path) -> Path | None:
    """Return the innermost finished artifact that contains a file; search no further than `top`."""
    for folder in path.parents:
        if (folder / MANIFEST).is_file():
            return folder
        if folder == top:
            break
    return None


def _ancestry(artifact: Path | None, cell: Cell, files: ArtifactFiles) -> dict[Path, Manifest]:
    """Return the manifests of a cell's artifact and its ancestors, by folder; the own one first."""
    manifests: dict[Path, Manifest] = {}
    parents = list(cell.parents)
    if artifact is not None:
        manifests[artifact] = files.manifest(artifact)
        parents += manifests[artifact].parents
    _collect(parents, files, manifests)
    return manifests


def _collect(
    parents: Sequence[Parent], files: ArtifactFiles, manifests: dict[Path, Manifest]
) -> None:
    for parent in parents:
        place = Path(parent.location)
        folder = place.parent if place.is_file() else place
        if folder in manifests or not (folder / MANIFEST).is_file():
            continue
        manifests[folder] = files.manifest(folder)
        _collect(manifests[folder].parents, files, manifests)
