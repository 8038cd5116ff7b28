"""Download a model from the Hugging Face hub, complete and verified or not at all."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.hub.repository import (
    NO_SPACE_HINT,
    Listing,
    check_space,
    fetch_files,
    list_repository,
)
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.requests.checkpoints import DownloadRequest
from amnesia_bench.store.files import read_json, remove_files
from amnesia_bench.store.hashing import file_entry
from amnesia_bench.store.layout import MANIFEST, resumable_path
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from amnesia_bench.weights.file_names import CONFIG, INDEX, PICKLE_SUFFIXES, SINGLE_FILE

KIND = "downloaded"
# Suffixes of configs, tokenizers and templates. Remote code uses qwen.tiktoken, vocab.bpe and
# bpe.codes, for example.
_SIDE_SUFFIXES = frozenset(
    {".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".codes", ".spm", ".vocab"}
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
_SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")
_LICENCES = ("LICENSE", "LICENCE", "NOTICE")


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A finished download.

    `code` lists its Python files, none of which was run; `licences` the licence and the names of
    its texts, where the source states them.
    """

    commit: str
    files: int
    bytes: int
    code: tuple[str, ...]
    licences: tuple[str, ...] = ()


def download_from_hub(request: DownloadRequest, out: Path) -> Downloaded:
    """Download the config, tokenizer, remote code and safetensors of a model into a folder.

    Pickles, other weight formats and subfolders are skipped. No downloaded code is run. If the
    process is killed, the same call resumes the download and keeps the files that are complete.

    Raises:
        UserError: the repository or revision does not exist, is not accessible, or has no config or
            no safetensors; or `out` exists.
        MissingEnvironmentError: huggingface_hub is not installed, or the hub cannot be reached.
        StageFailedError: the disk is too full, or the hash of a file differs from the hub's.
    """
    provenance = collect_provenance(sys.argv, seeds={})
    listing = _top_level(list_repository(request.repository, request.revision))
    _check_model(listing)
    partial_folder = resumable_path(out)
    if (out / MANIFEST).is_file():  # an earlier call was killed before its clean-up
        _clear(partial_folder)
    with publishing(out, kept="finished files are kept for the next attempt") as work:
        config_names = [name for name in (CONFIG, _TOKENIZER_CONFIG) if name in listing.files]
        hashes = fetch_files(listing, config_names, partial_folder)
        code = _code(listing, partial_folder)
        hashes |= fetch_files(listing, [*_side_files(listing), *code], partial_folder)
        shards = _shards(listing, partial_folder)
        missing = (name for name in shards if not (partial_folder / name).is_file())
        needed = sum(listing.files[name].bytes for name in missing)
        check_space(needed, partial_folder, listing.repository, NO_SPACE_HINT)
        hashes |= fetch_files(listing, shards, partial_folder)
        for name in hashes:
            (partial_folder / name).rename(work.folder / name)
        model = Parent(
            role="model",
            location=listing.location,
            identity=f"commit:{listing.commit}",
        )
        entries = [file_entry(work.folder, name, sha256=digest) for name, digest in hashes.items()]
        work.finish(KIND, [model], provenance, entries)
    _clear(partial_folder)
    return Downloaded(
        commit=listing.commit,
        files=len(hashes),
        bytes=sum(listing.files[name].bytes for name in hashes),
        code=code,
        licences=(
            *([] if listing.licence is None else [listing.licence]),
            *(name for name in sorted(hashes) if name.startswith(_LICENCES)),
        ),
    )


def _clear(partial_folder: Path) -> None:
    """Remove the files that are listed in huggingface_hub's records, and the records themselves."""
    record = partial_folder / ".cache" / "huggingface"
    downloaded = [
        path.name.removesuffix(".metadata") for path in record.glob("download/*.metadata")
    ]
    shutil.rmtree(record, ignore_errors=True)
    for folder in (record.parent, partial_folder):
        remove_files(folder, re.compile("|".join(map(re.escape, downloaded)) or "(?!)"))


def _top_level(listing: Listing) -> Listing:
    """Leave out subfolders, such as original/ and onnx/, with the same weights in other formats."""
    files = {name: file for name, file in listing.files.items() if "/" not in name}
    return replace(listing, files=files)


def download_bytes(listing: Listing) -> int:
    """Return at most how many bytes `download` reads, without reading any file.

    Raises:
        UserError: the repository has no config or no safetensors.
    """
    listing = _top_level(listing)
    _check_model(listing)
    shards = [name for name in listing.files if _SHARD.fullmatch(name)]
    shards = shards if INDEX in listing.files else [SINGLE_FILE]
    return sum(listing.files[name].bytes for name in (CONFIG, *_side_files(listing), *shards))


def _check_model(listing: Listing) -> None:
    names = sorted(listing.files)
    if CONFIG not in names:
        raise UserError(f"{listing.repository}: has no {CONFIG}, so it is not a model")
    if SINGLE_FILE not in names and INDEX not in names:
        pickles = [name for name in names if Path(name).suffix in PICKLE_SUFFIXES]
        raise UserError(
            f"{listing.repository}: has neither {SINGLE_FILE} nor {INDEX}"
            + (f"; {pickles[0]} is a pickle, which can run code when loaded" if pickles else ""),
            hint="Look for another --revision, or for the same model with safetensors.",
        )


def _side_files(listing: Listing) -> list[str]:
    """Return the names of the files to download in addition to config, code and weights."""
    return [
        name
        for name in sorted(listing.files)
        if (Path(name).suffix in _SIDE_SUFFIXES or name.startswith(_LICENCES))
        and not name.startswith(".")
        and name not in (CONFIG, MANIFEST)
    ]


def _code(listing: Listing, folder: Path) -> tuple[str, ...]:
    """Return the names of the Python files if the model or its tokenizer uses remote code."""
    uses_remote_code = False
    for name in (CONFIG, _TOKENIZER_CONFIG):
        if name in listing.files:
            content = _json(listing, folder, name)
            uses_remote_code |= isinstance(content, dict) and "auto_map" in content
    return tuple(
        name for name in sorted(listing.files) if uses_remote_code and name.endswith(".py")
    )


def _shards(listing: Listing, folder: Path) -> list[str]:
    if INDEX not in listing.files:
        return [SINGLE_FILE]
    try:
        shards = set(_json(listing, folder, INDEX)["weight_map"].values())
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{listing.repository}: {INDEX} is not an index ({error!r})") from error
    for name in shards:
        if name not in listing.files or Path(name).suffix != ".safetensors":
            raise UserError(
                f"{listing.repository}: {INDEX} lists {name!r}, which is not a weight file there"
            )
    return sorted(shards)


def _json(listing: Listing, folder: Path, name: str) -> Any:
    try:
        return read_json(folder / name)
    except UserError as error:
        raise UserError(f"{listing.repository}: {name} is not JSON") from error
