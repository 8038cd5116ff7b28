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
from amnesia_bench.reporting.paths import shown, typed_path
from amnesia_bench.store.checksums import check_checksum
from amnesia_bench.store.files import read_json
from amnesia_bench.store.hashing import read_manifest, sha256_of
from amnesia_bench.store.layout import MANIFEST

CELL_FILES = ("cell.json", "cells.json")
ANSWERS = "generations.jsonl"


@dataclass(frozen=True, kw_only=True)
class CellFolder:
    """A folder of cells, and the place in a table they are meant for.

    Where `model`, `method` or `seed` is None the cells' own names count; they have no seed.
    `method` may name the fine-tune too: `restored@tulu3`.
    """

    folder: Path
    model: str | None = None
    method: str | None = None
    seed: str | None = None


@dataclass(frozen=True, kw_only=True)
class FoundCell:
    """A cell under the names that the report knows it by, and where it lies.

    `artifact` is the finished folder that holds it, None when nothing published it.
    """

    model: str
    method: str
    seed: str | None
    cell: Cell
    path: Path
    artifact: Path | None
    origin: Origin


def parse_source(text: str) -> CellFolder:
    """Parse `[MODEL[/METHOD[@SFT][/SEED]]=]DIR`.

    Raises:
        UserError: the label has an empty part, or too many.
    """
    label, equals, folder = text.partition("=")
    if not equals or Path(text).exists():
        return CellFolder(folder=Path(text))
    parts = label.split("/")
    named = [name for part in parts for name in part.split("@")]
    if not folder or not all(named) or len(parts) > 3:
        raise UserError(
            f"--cells {text}: expected DIR, or MODEL/METHOD@SFT/SEED=DIR",
            hint="For example HypeNet-5B/restored@tulu3=results/qk; from the left as needed.",
        )
    model, method, seed = (*parts, None, None)[:3]
    return CellFolder(folder=Path(folder), model=model, method=method, seed=seed)


def read_source(source: CellFolder, out: Path) -> tuple[tuple[FoundCell, ...], tuple[str, ...]]:
    """Read every cell below a folder; without cells say why there are none.

    Args:
        source: the folder, and what its cells are called.
        out: the report's folder, which paths are told from.

    Raises:
        UserError: no such folder, a file is cut off, or is not what its manifest says.
    """
    if not source.folder.is_dir():
        raise UserError(f"{source.folder}: no such folder of cells")
    found: list[FoundCell] = []
    for path in _visible(source.folder, *CELL_FILES):
        artifact = _artifact_of(path, source.folder)
        check_hash(path, artifact)
        found += (
            FoundCell(
                model=source.model or cell.model,
                method=source.method or cell.method,
                seed=source.seed,
                cell=cell,
                path=path,
                artifact=artifact,
                origin=_origin(source.seed, path, artifact, cell, out),
            )
            for cell in _read_cells(path, artifact)
        )
    if found:
        return tuple(found), ()
    answers = any(_visible(source.folder, ANSWERS))
    why = "answers but no cells: not finished, or not scored" if answers else "no cells yet"
    return (), (f"{typed_path(source.folder)}: {why}",)


def _visible(folder: Path, *names: str) -> Iterator[Path]:
    """Yield files of these names, in order, but none from hidden folders: those are unfinished."""
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
            # Its hash is right.
            else "It is as it was written, so another version of amnesia-bench wrote it: use that."
        )
        raise UserError(error.what, hint=hint) from error


def _origin(seed: str | None, path: Path, artifact: Path | None, cell: Cell, out: Path) -> Origin:
    manifest = None if artifact is None else _manifest(artifact)
    parents = (*cell.parents, *(manifest.parents if manifest else ()))
    dirty: dict[Path, None] = {}
    if artifact is not None and manifest is not None and manifest.provenance.dirty:
        dirty[artifact / MANIFEST] = None
    _collect_dirty(parents, dirty, set())
    return Origin(
        seed=seed,
        path=shown(path if artifact is None else artifact / MANIFEST, out),
        manifest_sha256=None if artifact is None else sha256_of(artifact / MANIFEST),
        stage=(artifact or path.parent).name,
        commit=None if manifest is None else manifest.provenance.commit,
        dirty=tuple(shown(each, out) for each in dirty),
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


def forget_manifests() -> None:
    """Forget every manifest read so far."""
    _manifest.cache_clear()


def check_hash(path: Path, artifact: Path | None) -> None:
    """Compare a file with the manifest of the artifact that holds it, or the hashes beside it.

    Raises:
        UserError: it is not what was published.
    """
    if artifact is None:
        check_checksum(path, "Score it again, or take the file as it was.")
        return
    name = path.relative_to(artifact).as_posix()
    for entry in _manifest(artifact).files:
        if entry.path == name and entry.sha256 not in (None, sha256_of(path)):
            raise UserError(
                f"{path}: is not what {artifact / MANIFEST} says: it was changed since",
                hint="Remove that folder and run its stage again.",
            )


def _collect_dirty(parents: tuple[Parent, ...], dirty: dict[Path, None], seen: set[Path]) -> None:
    for parent in parents:
        place = Path(parent.location)
        folder = place.parent if place.is_file() else place
        if folder in seen or not (folder / MANIFEST).is_file():
            continue
        seen.add(folder)
        manifest = _manifest(folder)
        if manifest.provenance.dirty:
            dirty[folder / MANIFEST] = None
        _collect_dirty(manifest.parents, dirty, seen)
