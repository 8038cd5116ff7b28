"""Run model code that comes with a checkpoint only if the user trusts it by its hash.

transformers runs the code that `auto_map` in config.json, tokenizer_config.json or a processor
config refers to. That code may be in the folder, in a subfolder, in another folder or in another
repository on the hub, and can import other files of the folder. So the hash covers `auto_map` and
every Python file at any depth, and references to code outside the folder are refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.store.files import read_json
from amnesia_bench.weights.file_names import CONFIG
from amnesia_bench.weights.side_files import files_below

_CONFIGS_WITH_CODE = (
    CONFIG,
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
# A reference of the form module.Class, to a class in a file next to config.json.
_REFERENCE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*")


def check_trust(folder: Path, trusted_sha256: str | None) -> None:
    """Refuse a folder unless the hash of its code is `trusted_sha256`.

    Raises:
        UserError: the folder has no model code, refers to code elsewhere, contains a link to a
            folder, or its code has another hash.
    """
    maps = {name: _auto_map(folder / name) for name in _CONFIGS_WITH_CODE}
    for name, auto_map in maps.items():
        for reference in _references(auto_map):
            if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
                raise UserError(
                    f"{folder / name}: auto_map refers to {reference!r}, which is not a class in a "
                    "Python file of this folder",
                    hint="Copy the code into the folder, and refer to it as FILE.CLASS.",
                )
    paths = [folder / path for path in files_below(folder)]
    if links := [path for path in paths if path.is_dir()]:
        raise UserError(
            f"{links[0]}: is a link to a folder, and the hash would not cover the code in it",
            hint=f"Make a copy without links first: cp -rL {folder} COPY",
        )
    files = [path for path in paths if path.suffix == ".py"]
    if not files or not maps[CONFIG]:
        raise UserError(
            f"{folder}: transformers does not support this model type, and the folder has no code "
            "for it",
        )
    digest = hashlib.sha256(json.dumps(maps, sort_keys=True).encode())
    names = [path.relative_to(folder).as_posix() for path in files]
    for name, path in zip(names, files, strict=True):
        content = path.read_bytes()
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    if digest.hexdigest() != trusted_sha256:
        raise UserError(
            f"{folder} contains model code ({', '.join(names)}), which would run on this machine; "
            f"the hash of these files and of auto_map, {digest.hexdigest()}, does not match "
            "train.trusted_code_sha256",
            hint="Read these files. If you trust them, set train.trusted_code_sha256 to the hash.",
        )


def _auto_map(path: Path) -> object:
    if not path.is_file():
        return None
    content = read_json(path)
    return content.get("auto_map") if isinstance(content, dict) else None


def _references(value: object) -> Iterator[object]:
    """Yield the references in an auto_map; its values are references, lists of them, or null."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)
    elif value is not None:
        yield value
