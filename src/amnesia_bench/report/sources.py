"""Cells read back from the folders that evaluations wrote, and what is known of their making."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Manifest, Parent
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.records.report import Origin
from amnesia_bench.store.files import read_json
from amnesia_bench.store.hashing import read_manifest, sha256_of
from amnesia_bench.store.layout import MANIFEST

CELL_FILES = ("cell.json", "cells.json")
ANSWERS = "generations.jsonl"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder of cells, and the place in a table they are meant for.

    Where `model`, `method` or `seed` is None the cells' own names count; they have no seed.
    """

    folder: Path
    model: str | None = None
    method: str | None = None
    seed: str | None = None


@dataclass(frozen=True, kw_only=True)
class FoundCell:
    """A cell under the names that the report knows it by, and where it lies."""

    model: str
    method: str
    seed: str | None
    cell: Cell
    path: Path
    origin: Origin


def parse_source(text: str) -> Source:
    """Parse `[MODEL[/METHOD[/SEED]]=]DIR`.

    Raises:
        UserError: the label has an empty part, or too many.
    """
    label, equals, folder = text.partition("=")
    if not equals or Path(text).exists():
        return Source(folder=Path(text))
    parts = label.split("/")
    if not folder or not all(parts) or len(parts) > 3:
        raise UserError(
            f"--cells {text}: expected DIR, or MODEL/METHOD/SEED=DIR",
            hint="For example HypeNet-2B/restored=results/qk; METHOD and SEED may be left out.",
        )
    model, method, seed = (*parts, None, None)[:3]
    return Source(folder=Path(folder), model=model, method=method, seed=seed)


def read_source(source: Source) -> tuple[tuple[FoundCell, ...], tuple[str, ...]]:
    """Read every cell below a folder; without cells say why there are none.

    Raises:
        UserError: no such folder, a file is cut off, or is not what its manifest says.
    """
    if not source.folder.is_dir():
        raise UserError(f"{source.folder}: no such folder of cells")
    found = tuple(
        FoundCell(
            model=source.model or cell.model,
            method=source.method or cell.method,
            seed=source.seed,
            cell=cell,
            path=path,
            origin=_origin(source, path, cell),
        )
        for path in _visible(source.folder, *CELL_FILES)
        for cell in _read_cells(path)
    )
    if found:
        return found, ()
    answers = any(_visible(source.folder, ANSWERS))
    why = "answers but no cells: not finished, or not scored" if answers else "no cells yet"
    return (), (f"{source.folder}: {why}",)


def _visible(folder: Path, *names: str) -> Iterator[Path]:
    """Yield files of these names, in order, but none from hidden folders: those are unfinished."""
    for path in sorted(path for name in names for path in folder.rglob(name)):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _read_cells(path: Path) -> Iterator[Cell]:
    try:
        data = read_json(path)
        if isinstance(data, list):
            for i, item in enumerate(data):
                yield codec.from_json(Cell, item, f"{path}[{i}]")
        else:
            yield codec.from_json(Cell, data, str(path))
    except UserError as error:
        hint = "It was cut off or changed by hand: remove it and run its evaluation again."
        raise UserError(error.what, hint=hint) from error


def _origin(source: Source, path: Path, cell: Cell) -> Origin:
    folder = _artifact_of(path, source.folder)
    manifest = None if folder is None else _manifest(folder)
    if folder is not None and manifest is not None:
        _check_hash(path, folder, manifest)
    parents = (*cell.parents, *(manifest.parents if manifest else ()))
    dirty: dict[str, None] = {}
    if folder is not None and manifest is not None and manifest.provenance.dirty:
        dirty[str(folder / MANIFEST)] = None
    _collect_dirty(parents, dirty, set())
    return Origin(
        seed=source.seed,
        cell=str(path),
        manifest=None if folder is None else str(folder / MANIFEST),
        stage=(folder or path.parent).name,
        commit=None if manifest is None else manifest.provenance.commit,
        dirty=tuple(dirty),
    )


def _artifact_of(path: Path, top: Path) -> Path | None:
    """Return the innermost finished artifact that holds a file, no further up than `top`."""
    for folder in path.parents:
        if (folder / MANIFEST).is_file():
            return folder
        if folder == top:
            break
    return None


@cache
def _manifest(folder: Path) -> Manifest:
    return read_manifest(folder)


def _check_hash(path: Path, folder: Path, manifest: Manifest) -> None:
    name = path.relative_to(folder).as_posix()
    for entry in manifest.files:
        if entry.path == name and entry.sha256 not in (None, sha256_of(path)):
            raise UserError(
                f"{path}: is not what {folder / MANIFEST} says: it was changed since",
                hint="Remove that folder and run its stage again.",
            )


def _collect_dirty(parents: tuple[Parent, ...], dirty: dict[str, None], seen: set[Path]) -> None:
    for parent in parents:
        place = Path(parent.location)
        folder = place.parent if place.is_file() else place
        if folder in seen or not (folder / MANIFEST).is_file():
            continue
        seen.add(folder)
        manifest = _manifest(folder)
        if manifest.provenance.dirty:
            dirty[str(folder / MANIFEST)] = None
        _collect_dirty(manifest.parents, dirty, seen)
