"""Reopen a tokenizer that was loaded before, without importing transformers and torch.

A loaded tokenizer is kept in the store as the `tokenizers` library serialises it, with its
identity. The key is a hash of everything that loading depends on: the contents of the folder's
small files, and the versions of the two libraries.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.records.codec import from_json, to_json
from amnesia_bench.records.niah import TokenizerParts
from amnesia_bench.store.layout import store_root
from amnesia_bench.tokenizers.tokenizer import (
    load_tokenizer,
    tokenizer_identity,
    tokenizer_parts,
)

_FOLDER = "tokenizers"
_SERIALISED, _DESCRIPTION = "tokenizer.json", "identity.json"
_SUFFIXES = frozenset({".json", ".txt", ".model", ".tiktoken"})


@dataclass(frozen=True, kw_only=True)
class KnownTokenizer:
    """A tokenizer with its identity; it is called like one of transformers."""

    backend_tokenizer: Any
    identity: str
    parts: TokenizerParts

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        encoded = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return SimpleNamespace(input_ids=encoded.ids)


@dataclass(frozen=True, kw_only=True)
class _Description:
    """The identity of a kept tokenizer, and the hash of its serialised form."""

    sha256: str
    identity: str
    parts: TokenizerParts


def open_known_tokenizer(folder: Path) -> KnownTokenizer:
    """Open the tokenizer of a checkpoint folder; load it with transformers only the first time.

    Raises:
        UserError, MissingEnvironmentError: see `load_tokenizer`.
    """
    if not folder.is_dir():
        load_tokenizer(folder)  # raises the error
    kept = store_root() / _FOLDER / _key(folder)
    if (known := _read(kept)) is not None:
        return known
    loaded = load_tokenizer(folder)
    known = KnownTokenizer(
        backend_tokenizer=loaded.backend_tokenizer,
        identity=tokenizer_identity(loaded),
        parts=tokenizer_parts(loaded),
    )
    # Without a place to keep it, the next process just loads it again.
    with suppress(OSError):
        _write(kept, known)
    return known


def _key(folder: Path) -> str:
    digest = hashlib.sha256()
    for library in ("transformers", "tokenizers"):
        with suppress(metadata.PackageNotFoundError):
            digest.update(f"{library} {metadata.version(library)}\0".encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.name} {content}\0".encode())
    return digest.hexdigest()[:32]


def _read(folder: Path) -> KnownTokenizer | None:
    """Return a kept tokenizer; None if there is none, or if its files are damaged."""
    try:
        content = (folder / _SERIALISED).read_bytes()
        data = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        description = from_json(_Description, data, str(folder / _DESCRIPTION))
    except (OSError, ValueError, UserError):
        return None
    if hashlib.sha256(content).hexdigest() != description.sha256:
        return None
    from tokenizers import Tokenizer

    return KnownTokenizer(
        backend_tokenizer=Tokenizer.from_buffer(content),
        identity=description.identity,
        parts=description.parts,
    )


def _write(folder: Path, known: KnownTokenizer) -> None:
    content = known.backend_tokenizer.to_str().encode("utf-8", "surrogatepass")
    description = _Description(
        sha256=hashlib.sha256(content).hexdigest(), identity=known.identity, parts=known.parts
    )
    new = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    new.mkdir(parents=True, exist_ok=True)
    try:
        (new / _SERIALISED).write_bytes(content)
        text = json.dumps(to_json(description))
        (new / _DESCRIPTION).write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
