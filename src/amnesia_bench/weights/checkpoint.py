"""A checkpoint folder in Hugging Face form: config.json and one or more safetensors files.

Reads headers only. What could make two readers of one folder see different weights (duplicate
names, an index that disagrees with its shards) is refused here, once, for every command.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.store.files import read_json
from amnesia_bench.store.held_files import HeldFiles
from amnesia_bench.weights.file_names import CONFIG, INDEX, SINGLE_FILE
from amnesia_bench.weights.folder_kinds import check_checkpoint_folder
from amnesia_bench.weights.header import DTYPE_BITS, Header, TensorEntry, read_header


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The tensors of one folder, located but not read.

    `shards` maps file name -> header; `tensors` maps tensor name -> (file name, entry). `held`
    are the files that were read, as they were then: who uses the folder later checks them.
    """

    folder: Path
    config: Mapping[str, Any]
    shards: Mapping[str, Header]
    tensors: Mapping[str, tuple[str, TensorEntry]]
    held: HeldFiles

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, (_, entry) in self.tensors.items()}

    def read(self, name: str) -> bytes:
        """Return the raw bytes of one tensor."""
        _, entry = self.tensors[name]
        return b"".join(self.pieces(name, max(math.prod(entry.shape), 1)))

    def pieces(self, name: str, num_values: int) -> Iterator[bytes]:
        """Yield the raw bytes of one tensor, `num_values` values at a time."""
        shard, entry = self.tensors[name]
        piece_bytes = -(-num_values * DTYPE_BITS[entry.dtype] // 8)
        with self.held.reading(self.shards[shard].path) as file:
            file.seek(entry.start)
            for start in range(entry.start, entry.end, piece_bytes):
                wanted = min(piece_bytes, entry.end - start)
                data = file.read(wanted)
                if len(data) != wanted:
                    raise UserError(f"{file.name}: became shorter while it was being read.")
                yield data


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config, index and every header of `folder`.

    Raises:
        UserError: it is no checkpoint but something else, which is named with what to type then;
            or its index does not agree with its shards.
        MissingEnvironmentError: a file may not be read.
    """
    try:
        return _open(folder)
    except OSError as error:
        raise MissingEnvironmentError(
            f"{error.filename or folder}: cannot be read ({error.strerror}).",
            hint="Check its permissions and those of the folders above it.",
        ) from error


def _open(folder: Path) -> Checkpoint:
    check_checkpoint_folder(folder)
    config_path = plain_file(folder, CONFIG)
    held = HeldFiles.hold(path for path in (config_path, folder / INDEX) if path.exists())
    config = _read_json(config_path)
    weight_map = _weight_map(folder)
    names = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE_FILE]
    paths = {name: plain_file(folder, name) for name in names}
    held += HeldFiles.hold(paths.values())
    shards = {name: read_header(path) for name, path in paths.items()}
    tensors: dict[str, tuple[str, TensorEntry]] = {}
    for shard, header in shards.items():
        for name, entry in header.tensors.items():
            if name in tensors:
                raise UserError(
                    f"{folder}: tensor {name!r} lies in both {tensors[name][0]} and {shard}; "
                    "loaders disagree on which one counts.",
                    hint="Save this checkpoint again with save_pretrained.",
                )
            tensors[name] = (shard, entry)
    if weight_map is not None:
        _check_index(folder, weight_map, {name: shard for name, (shard, _) in tensors.items()})
    held.check()
    return Checkpoint(folder=folder, config=config, shards=shards, tensors=tensors, held=held)


def plain_file(folder: Path, name: str) -> Path:
    """Return folder/name, refusing what is no plain file. Links are followed wherever they lead.

    That is safe for what is read as JSON or safetensors: a snapshot of the hub's cache is made of
    links, and a file that is something else is refused by its form.
    """
    path = folder / name
    try:
        target = path.resolve()
    except RuntimeError:  # of a link that leads to itself, before Python 3.13
        raise UserError(f"{path}: is a link that leads to itself.") from None
    if path.is_symlink() and not target.exists():
        raise UserError(
            f"{path}: is a link that leads to nothing ({target}).",
            hint="Was the cache that it leads to cleared? Download or save this checkpoint again.",
        )
    if not path.is_file():
        raise UserError(
            f"{path}: is missing or not a file.",
            hint="Is the checkpoint complete?",
        )
    return path


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Return tensor name -> shard from the index, or None for a single file."""
    index, single = folder / INDEX, folder / SINGLE_FILE
    if not index.exists() and not index.is_symlink():
        return None
    weight_map = _read_json(plain_file(folder, INDEX)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map.")
    for name, shard in weight_map.items():
        plain = isinstance(shard, str) and shard and shard.isprintable()
        if not plain or Path(shard).name != shard:
            raise UserError(
                f"{index}: maps {name!r} to {shard!r}, which is not the name of a file beside it."
            )
    if single.exists() and SINGLE_FILE not in weight_map.values():
        raise UserError(
            f"{folder}: holds both {SINGLE_FILE} and {INDEX}, which does not name it; loaders "
            "disagree on which one counts.",
            hint="Remove the one that is stale.",
        )
    return weight_map


def _check_index(folder: Path, weight_map: dict[str, str], actual: dict[str, str]) -> None:
    for name, shard in weight_map.items():
        if actual.get(name) != shard:
            where = f"it is in {actual[name]}" if name in actual else "no shard holds it"
            raise UserError(f"{folder / INDEX}: maps {name!r} to {shard}, but {where}.")
    extra = sorted(actual.keys() - weight_map.keys())
    if extra:
        raise UserError(f"{folder / INDEX}: does not list {extra[0]!r} of {actual[extra[0]]}.")


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object.")
    return content
