"""A checkpoint folder in Hugging Face form: config.json and one or more safetensors files.

Reads headers only. What could make two readers of one folder see different weights (duplicate
names, an index that disagrees with its shards, links out of the folder) is refused here, once,
for every command.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.store.held_files import HeldFiles
from amnesia_bench.weights.header import DTYPE_BITS, Header, TensorEntry, read_header

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
# Weights in some other form: copied beside repaired safetensors they would be stale.
OTHER_WEIGHT_SUFFIXES = PICKLE_SUFFIXES | {".safetensors", ".gguf", ".h5", ".msgpack", ".onnx"}


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
        UserError: no such folder, no config, no safetensors (pickles are named with the command
            that converts them), or an index that does not agree with its shards.
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
    if not folder.is_dir():
        raise UserError(
            f"{folder}: is not a folder.",
            hint="A model on the hub is fetched first: hf download ORG/NAME --local-dir FOLDER",
        )
    config_path = inside(folder, CONFIG, _no_config_hint(folder))
    read_first = [path for path in (config_path, folder / INDEX) if path.exists()]
    held = HeldFiles.hold(read_first)
    config = _read_json(config_path)
    weight_map = _weight_map(folder)
    names = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE_FILE]
    paths = {name: inside(folder, name) for name in names}
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


def side_files(folder: Path) -> list[Path]:
    """Return what belongs to a checkpoint besides its weights, relative to `folder`.

    Config, tokenizer, templates, remote code, in subfolders too. Weights in any form, hidden
    files and caches are left out.

    Raises:
        UserError: one of them is a link to a folder, leads out, or is no plain file.
        OSError: a folder may not be listed.
    """
    found = []
    for path in files_below(folder):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
        if hidden or path.suffix in OTHER_WEIGHT_SUFFIXES or path.name == INDEX:
            continue
        if not str(path).isprintable():  # it could not be named in a manifest, nor in a message
            raise UserError(f"{folder}: the name of {str(path)!r} cannot be printed; rename it.")
        inside(folder, str(path), _without_links(folder))
        found.append(path)
    return found


def files_below(folder: Path) -> list[Path]:
    """Return everything under `folder` but plain folders, relative to it, in order.

    Raises:
        OSError: a folder may not be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [(Path(parent) / name).relative_to(folder) for name in (*names, *links)]
    return sorted(found)


def inside(folder: Path, name: str, missing_hint: str | None = None) -> Path:
    """Return folder/name, refusing what leaves the folder or does not exist."""
    path = folder / name
    try:
        target = path.resolve()
    except RuntimeError:  # of a link that leads to itself, before Python 3.13
        raise UserError(f"{path}: is a link that leads to itself.") from None
    if not target.is_relative_to(folder.resolve()):
        raise UserError(
            f"{path}: leads out of the checkpoint folder, to {target}.",
            hint=_without_links(folder),
        )
    if not path.is_file():
        raise UserError(f"{path}: is missing or not a file.", hint=missing_hint)
    return path


def _without_links(folder: Path) -> str:
    return f"Make a copy without links first: cp -rL {folder} COPY"


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Return tensor name -> shard from the index, or None for a single file."""
    index, single = folder / INDEX, folder / SINGLE_FILE
    if not index.exists():
        if not single.exists():
            raise _no_safetensors(folder)
        return None
    weight_map = _read_json(inside(folder, INDEX)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map.")
    for name, shard in weight_map.items():
        plain = isinstance(shard, str) and shard and "\0" not in shard
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


def _no_safetensors(folder: Path) -> UserError:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        return UserError(
            f"{folder}: holds its weights as pickle ({', '.join(pickles[:3])}), which can run code "
            "when it is read; only safetensors are.",
            hint='Convert it: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\"",
        )
    return UserError(f"{folder}: holds neither {SINGLE_FILE} nor {INDEX}.")


def _no_config_hint(folder: Path) -> str | None:
    if (folder / "adapter_config.json").exists():
        return "This is a LoRA adapter: merge it into its base model first (merge_and_unload)."
    return "Give the folder that save_pretrained wrote."


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object.")
    return content
