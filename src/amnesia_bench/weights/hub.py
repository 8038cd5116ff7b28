"""Download a model from the Hugging Face hub, complete and verified or not at all."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.requests.checkpoints import DownloadRequest
from amnesia_bench.store.files import read_json, remove_files
from amnesia_bench.store.hashing import file_entry, sha256_of
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
_IN_URL = re.compile(r"huggingface\.co/([^/]+/[^/?#]+)")
_LICENCES = ("LICENSE", "LICENCE", "NOTICE")


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A finished download; `code` lists its Python files, none of which was run."""

    commit: str
    files: int
    bytes: int
    code: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """A repository at one commit; `files` maps the names in its top-level folder to the files."""

    repository: str
    commit: str
    files: Mapping[str, _RemoteFile]


@dataclass(frozen=True, kw_only=True)
class _RemoteFile:
    """A file on the hub; its hash is `sha256` for large files (Git LFS), else the git blob id."""

    bytes: int
    sha256: str | None
    git_id: str | None


def download(request: DownloadRequest, out: Path) -> Downloaded:
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
    listing = _listing(request.repository, request.revision)
    _check_model(listing)
    partial_folder = resumable_path(out)
    if (out / MANIFEST).is_file():  # an earlier call was killed before its clean-up
        _clear(partial_folder)
    with publishing(out, kept="finished files are kept for the next attempt") as work:
        config_names = [name for name in (CONFIG, _TOKENIZER_CONFIG) if name in listing.files]
        hashes = _fetch(listing, config_names, partial_folder)
        code = _code(listing, partial_folder)
        hashes |= _fetch(listing, [*_side_files(listing), *code], partial_folder)
        shards = _shards(listing, partial_folder)
        _check_space(listing, shards, partial_folder)
        hashes |= _fetch(listing, shards, partial_folder)
        for name in hashes:
            (partial_folder / name).rename(work.folder / name)
        model = Parent(
            role="model",
            location=f"hf://{request.repository}",
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


def _listing(repository: str, revision: str | None) -> _Listing:
    with _translated_errors(repository, revision):
        model_info = _hub().model_info(repository, revision=revision, files_metadata=True)
    files = {
        file.rfilename: _RemoteFile(
            bytes=file.size or 0,
            sha256=None if file.lfs is None else file.lfs.sha256,
            git_id=file.blob_id,
        )
        for file in model_info.siblings or ()
        # Subfolders such as original/ and onnx/ contain the same weights in other formats.
        if PurePosixPath(file.rfilename).name == file.rfilename
    }
    return _Listing(repository=repository, commit=model_info.sha, files=files)


def _check_model(listing: _Listing) -> None:
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


def _side_files(listing: _Listing) -> list[str]:
    """Return the names of the files to download in addition to config, code and weights."""
    return [
        name
        for name in sorted(listing.files)
        if (Path(name).suffix in _SIDE_SUFFIXES or name.startswith(_LICENCES))
        and not name.startswith(".")
        and name not in (CONFIG, MANIFEST)
    ]


def _code(listing: _Listing, folder: Path) -> tuple[str, ...]:
    """Return the names of the Python files if the model or its tokenizer uses remote code."""
    uses_remote_code = False
    for name in (CONFIG, _TOKENIZER_CONFIG):
        if name in listing.files:
            content = _json(listing, folder, name)
            uses_remote_code |= isinstance(content, dict) and "auto_map" in content
    return tuple(
        name for name in sorted(listing.files) if uses_remote_code and name.endswith(".py")
    )


def _shards(listing: _Listing, folder: Path) -> list[str]:
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


def _json(listing: _Listing, folder: Path, name: str) -> Any:
    try:
        return read_json(folder / name)
    except UserError as error:
        raise UserError(f"{listing.repository}: {name} is not JSON") from error


def _check_space(listing: _Listing, names: Sequence[str], folder: Path) -> None:
    missing_bytes = sum(
        listing.files[name].bytes for name in names if not (folder / name).is_file()
    )
    free = shutil.disk_usage(folder).free
    if missing_bytes > free:
        raise StageFailedError(
            f"{listing.repository}: {missing_bytes:,} bytes are needed and {free:,} are free",
            hint="Free some space, or choose another --out.",
        )


def _fetch(listing: _Listing, names: Sequence[str], folder: Path) -> dict[str, str]:
    """Download the named files that `folder` lacks, and return the sha256 of every named file."""
    hashes = {}
    for name in names:
        with _translated_errors(listing.repository, listing.commit):
            _hub().hf_hub_download(
                listing.repository, name, revision=listing.commit, local_dir=folder
            )
        hashes[name] = _verified_sha256(listing, name, folder / name)
    return hashes


def _verified_sha256(listing: _Listing, name: str, path: Path) -> str:
    """Return the sha256 of a file, or remove the file and raise if the hub has another hash."""
    remote, digest = listing.files[name], sha256_of(path)
    if remote.sha256 is not None:
        is_identical = digest == remote.sha256
    else:
        is_identical = remote.git_id is None or _git_id(path) == remote.git_id
    if not is_identical:
        path.unlink()
        raise StageFailedError(
            f"{listing.repository}: the hash of {name} differs from the hub's; it was removed",
            hint="Run the same command again: it downloads this file and keeps the others.",
        )
    return digest


def _git_id(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _hub() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


@contextmanager
def _translated_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Convert errors of the hub to `AmnesiaError`; errors of the local disk are left unchanged."""
    try:
        from huggingface_hub import errors
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's class
    except ImportError as error:
        raise MissingEnvironmentError(
            f"downloading needs huggingface_hub ({error})", hint='pip install "amnesia-bench[eval]"'
        ) from error
    try:
        yield
    except errors.HFValidationError as error:
        url = _IN_URL.search(repository)
        raise UserError(
            f"{repository}: is not a repository name",
            hint=f"Give {url[1] if url else 'OWNER/NAME'}",
        ) from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repository}: is gated: its owners require you to accept their terms",
            hint=f"Accept them at https://huggingface.co/{repository}, then: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _no_access(repository) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository}: has no revision {revision}") from error
    except errors.OfflineModeIsEnabled as error:
        raise MissingEnvironmentError(
            f"{repository}: HF_HUB_OFFLINE forbids access to the hub", hint="unset HF_HUB_OFFLINE"
        ) from error
    except (
        HTTPError,
        errors.EntryNotFoundError,
        errors.XetDownloadError,
        ConnectionError,
    ) as error:
        response = getattr(error, "response", None)
        if response is not None and response.status_code in (401, 403, 404):
            raise _no_access(repository) from error
        raise MissingEnvironmentError(
            f"{repository}: the hub cannot be reached ({str(error).partition(chr(10))[0]})",
            hint="Run the same command again: it keeps the files that are complete.",
        ) from error


def _no_access(repository: str) -> UserError:
    return UserError(
        f"{repository}: the hub has no such model, or you have no access to it",
        hint=(
            "Is it spelled right?"
            if "/" in repository
            else f"The owner's name is missing: amnesia download OWNER/{repository}"
        )
        + " For a private model: hf auth login",
    )
