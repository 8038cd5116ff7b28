"""Open a checkpoint folder in Hugging Face format: config.json and safetensors files.

Opening a folder reads only the headers of its safetensors files. For every command, a folder is
refused if two loaders could load different weights from it, because of duplicate tensor names or an
index that disagrees with its shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
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
    """The location of every tensor of a checkpoint folder; no tensor data is loaded.

    `shards` maps each file name to its header, `tensors` maps each tensor name to its file name and
    entry. `held` records the state of the files when they were opened, so that later code can check
    that they have not changed.
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
        """Return the raw bytes of a tensor."""
        _, entry = self.tensors[name]
        return b"".join(self.pieces(name, max(math.prod(entry.shape), 1)))

    def pieces(self, name: str, num_values: int) -> Iterator[bytes]:
        """Yield the raw bytes of a tensor, `num_values` values at a time."""
        _, entry = self.tensors[name]
        size = -(-num_values * DTYPE_BITS[entry.dtype] // 8)
        return self.parts(
            name, (min(size, entry.num_bytes - at) for at in range(0, entry.num_bytes, size))
        )

    def parts(self, name: str, sizes: Iterable[int]) -> Iterator[bytes]:
        """Yield the raw bytes of a tensor in successive parts of the given sizes in bytes."""
        shard, entry = self.tensors[name]
        with self.held.reading(self.shards[shard].path) as file:
            file.seek(entry.start)
            for size in sizes:
                data = file.read(size)
                if len(data) != size:
                    raise UserError(f"{file.name}: was truncated while it was being read.")
                yield data


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder: read its config, its index and the header of every shard.

    Raises:
        UserError: `folder` is not a checkpoint (the message tells the user what it is instead and
            what to do), a file in it is damaged, or its index does not match its shards.
        MissingEnvironmentError: a file cannot be read.
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
                    f"{folder}: tensor {name!r} is in both {tensors[name][0]} and {shard}; "
                    "loaders disagree on which one to use.",
                    hint="Save this checkpoint again with save_pretrained.",
                )
            tensors[name] = (shard, entry)
    if weight_map is not None:
        _check_index(folder, weight_map, {name: shard for name, (shard, _) in tensors.items()})
    held.check()
    return Checkpoint(folder=folder, config=config, shards=shards, tensors=tensors, held=held)


def plain_file(folder: Path, name: str) -> Path:
    """Return folder/name if it is a regular file, or a link to a regular file anywhere.

    Links are allowed because a snapshot in the hub's cache consists of links. Links to files
    outside the folder are safe for config.json, the index and safetensors files: a file with other
    contents fails to parse.

    Raises:
        UserError: the file is missing, a broken link, or not a regular file.
    """
    path = folder / name
    try:
        target = path.resolve()
    except RuntimeError:  # from a link to itself, before Python 3.13
        raise UserError(f"{path}: is a link to itself.") from None
    if path.is_symlink() and not target.exists():
        raise UserError(
            f"{path}: is a broken link: {target} does not exist.",
            hint="Was the cache that it points to cleared? Download or save this checkpoint again.",
        )
    if not path.is_file():
        raise UserError(
            f"{path}: is missing or not a file.",
            hint="Is the checkpoint complete?",
        )
    return path


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Return the index's map of tensor names to shards, or None if the checkpoint has no index."""
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
                f"{index}: maps {name!r} to {shard!r}, which is not a file name in this folder."
            )
    if single.exists() and SINGLE_FILE not in weight_map.values():
        raise UserError(
            f"{folder}: holds both {SINGLE_FILE} and {INDEX}, which does not list it; loaders "
            "disagree on which one to use.",
            hint="Remove the one that is stale.",
        )
    return weight_map


def _check_index(folder: Path, weight_map: dict[str, str], actual: dict[str, str]) -> None:
    for name, shard in weight_map.items():
        if actual.get(name) != shard:
            where = f"it is in {actual[name]}" if name in actual else "no shard has it"
            raise UserError(f"{folder / INDEX}: maps {name!r} to {shard}, but {where}.")
    extra = sorted(actual.keys() - weight_map.keys())
    if extra:
        raise UserError(f"{folder / INDEX}: does not list {extra[0]!r} of {actual[extra[0]]}.")


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object.")
    return content
