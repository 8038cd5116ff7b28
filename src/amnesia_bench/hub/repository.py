"""List a repository of the Hugging Face hub at one commit, and fetch verified files of it."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.store.hashing import sha256_of

RepositoryKind = Literal["model", "dataset"]
_IN_URL = re.compile(r"huggingface\.co/(?:datasets/)?([^/]+/[^/?#]+)")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file on the hub; its hash is `sha256` for large files (Git LFS), else the git blob id."""

    bytes: int
    sha256: str | None
    git_id: str | None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A repository at one commit; `files` maps paths in the repository to the files.

    `licence` is the licence on the repository's card; None if the card states none. The owners of a
    gated repository require users to accept their terms.
    """

    repository: str
    kind: RepositoryKind
    commit: str
    files: Mapping[str, RemoteFile]
    licence: str | None
    gated: bool

    @property
    def location(self) -> str:
        """The location for manifests, such as `hf://datasets/OWNER/NAME`."""
        return hub_location(self.repository, self.kind)


def hub_location(repository: str, kind: RepositoryKind) -> str:
    """Return the location of a repository in the form that fsspec and `datasets` use."""
    return f"hf://{'datasets/' if kind == 'dataset' else ''}{repository}"


def list_repository(
    repository: str, revision: str | None, kind: RepositoryKind = "model"
) -> Listing:
    """Return the files of a repository; `revision` None selects the newest commit.

    Raises:
        UserError: the repository or revision does not exist, or is not accessible.
        MissingEnvironmentError: huggingface_hub is not installed, or the hub cannot be reached.
    """
    with _translated_errors(repository, revision, kind):
        info = _hub().repo_info(repository, revision=revision, repo_type=kind, files_metadata=True)
    files = {
        file.rfilename: RemoteFile(
            bytes=file.size or 0,
            sha256=None if file.lfs is None else file.lfs.sha256,
            git_id=file.blob_id,
        )
        for file in info.siblings or ()
    }
    licence = getattr(info.card_data, "license", None)
    return Listing(
        repository=repository,
        kind=kind,
        commit=info.sha,
        files=files,
        licence=", ".join(licence) if isinstance(licence, list) else licence,
        gated=bool(info.gated),
    )


def check_access(listing: Listing) -> None:
    """Check that the files of a gated repository may be fetched.

    Raises:
        UserError: the user has not accepted the terms, or is not logged in.
        MissingEnvironmentError: the hub cannot be reached.
    """
    if listing.gated:
        with _translated_errors(listing.repository, listing.commit, listing.kind):
            _hub().auth_check(listing.repository, repo_type=listing.kind)


def fetch_files(listing: Listing, names: Sequence[str], folder: Path) -> dict[str, str]:
    """Download the named files that `folder` lacks, and return the sha256 of every named file.

    Raises:
        UserError, MissingEnvironmentError: as in `list_repository`.
        StageFailedError: the hash of a file differs from the hub's; the file was removed.
    """
    hashes = {}
    for name in names:
        with _translated_errors(listing.repository, listing.commit, listing.kind):
            _hub().hf_hub_download(
                listing.repository,
                name,
                repo_type=listing.kind,
                revision=listing.commit,
                local_dir=folder,
            )
        hashes[name] = _verified_sha256(listing, name, folder / name)
    return hashes


NO_SPACE_HINT = "Free some space, or choose another --out."


def check_space(needed_bytes: int, folder: Path, where: str, hint: str) -> None:
    """Raise StageFailedError if the disk of an existing folder has less space than needed."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise StageFailedError(
            f"{where}: {needed_bytes:,} bytes are needed and {free:,} are free", hint=hint
        )


def _verified_sha256(listing: Listing, name: str, path: Path) -> str:
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
def _translated_errors(
    repository: str, revision: str | None, kind: RepositoryKind
) -> Iterator[None]:
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
            hint=f"Accept them at {_page(repository, kind)}, then: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _no_access(repository, kind) from error
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
            raise _no_access(repository, kind) from error
        raise MissingEnvironmentError(
            f"{repository}: the hub cannot be reached ({str(error).partition(chr(10))[0]})",
            hint="Check the network ($HTTPS_PROXY, $HF_ENDPOINT), then run the same command again: "
            "it keeps the files that are complete.",
        ) from error


def _page(repository: str, kind: RepositoryKind) -> str:
    return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"


def _no_access(repository: str, kind: RepositoryKind) -> UserError:
    return UserError(
        f"{repository}: the hub has no such {kind}, or you have no access to it",
        hint=(
            "Is it spelled right?"
            if "/" in repository
            else f"The owner's name is missing: OWNER/{repository}"
        )
        + f" For a private {kind}: hf auth login",
    )
