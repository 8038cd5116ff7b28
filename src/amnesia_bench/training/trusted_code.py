"""Model code that comes with a checkpoint runs only if somebody vouched for all of it by its hash.

transformers runs what `auto_map` of config.json or tokenizer_config.json names: a file of the
folder, one in a subfolder, another folder or another repository on the hub. Files import others of
their folder. So the hash covers `auto_map` and every Python file at any depth, and names that lead
elsewhere are refused.
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

_NAMING = (CONFIG, "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
# module.Class, a file beside config.json
_REFERENCE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*")


def check_trust(folder: Path, trusted_sha256: str | None) -> None:
    """Refuse a folder whose code nobody has vouched for.

    Raises:
        UserError: it brings none, names code elsewhere, or its hash is another one.
    """
    maps = {name: _auto_map(folder / name) for name in _NAMING}
    for name, found in maps.items():
        for reference in _references(found):
            if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
                raise UserError(
                    f"{folder / name}: auto_map names {reference!r}, which is not a class in a "
                    "Python file of this folder",
                    hint="Copy the code into the folder, and name it as FILE.CLASS.",
                )
    found = [folder / path for path in files_below(folder)]
    if links := [path for path in found if path.is_dir()]:
        raise UserError(
            f"{links[0]}: a link to a folder, whose code the hash would not cover",
            hint=f"Make a copy without links first: cp -rL {folder} COPY",
        )
    files = [path for path in found if path.suffix == ".py"]
    if not files or not maps[CONFIG]:
        raise UserError(
            f"{folder}: a model of a type that transformers does not know, and no code for it",
        )
    digest = hashlib.sha256(json.dumps(maps, sort_keys=True).encode())
    names = [path.relative_to(folder).as_posix() for path in files]
    for name, path in zip(names, files, strict=True):
        content = path.read_bytes()
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    if digest.hexdigest() != trusted_sha256:
        raise UserError(
            f"{folder} brings model code of its own ({', '.join(names)}), which would run here; "
            f"the hash of these files and of auto_map, {digest.hexdigest()}, is not "
            "train.trusted_code_sha256",
            hint="Read these files. If you trust them, set train.trusted_code_sha256 to the hash.",
        )


def _auto_map(path: Path) -> object:
    if not path.is_file():
        return None
    content = read_json(path)
    return content.get("auto_map") if isinstance(content, dict) else None


def _references(value: object) -> Iterator[object]:
    """Yield what an auto_map names: classes by their use, one or a list of them, or null."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)
    elif value is not None:
        yield value
