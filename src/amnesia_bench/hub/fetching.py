"""Select the files of a data set on the hub, and fetch them into the store as an artifact."""

from __future__ import annotations

import http.client
import shutil
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.hub.fetched import FETCHED_KIND, FILES, RECORD, HubFiles, WebFile, fetched_path
from amnesia_bench.hub.repository import Listing, fetch_files, hub_location
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.hub import FetchedRecord
from amnesia_bench.store.files import make_folder, write_json
from amnesia_bench.store.hashing import file_entry, sha256_of
from amnesia_bench.store.layout import resumable_path
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import Work, publishing

_CARD = "README.md"
_KEPT = "finished files are kept for the next attempt"
_SECONDS = 60


def subset_files(
    repository: str, subset: str | None, revision: str | None
) -> Mapping[str, Sequence[str]]:
    """Return the files of a subset of a data set by split, as `datasets` finds them.

    Raises:
        UserError: the hub has no such data set or subset.
        MissingEnvironmentError: `datasets` is not installed, or the hub does not answer.
    """
    try:
        from datasets import load_dataset_builder
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingEnvironmentError(
            f"reading from the Hub needs datasets ({error})",
            hint='pip install "amnesia-bench[train]"',
        ) from error
    try:
        builder = load_dataset_builder(repository, subset, revision=revision)
    except (DatasetsError, ValueError) as error:
        raise UserError(f"{repository}, subset {subset}: {error}") from error
    except OSError as error:
        raise MissingEnvironmentError(
            f"{repository}: the Hub cannot be reached ({error})",
            hint="To read files you already have: --input PATH",
        ) from error
    files = builder.config.data_files or {}
    return {str(split): [str(name) for name in names] for split, names in files.items()}


def files_of_split(selection: HubFiles) -> list[str]:
    """Return the files of one split that `selection` takes from each subset, in order.

    Raises:
        UserError: the data set has no such subset or split, or no file is left.
        MissingEnvironmentError: as in `subset_files`.
    """
    selected: list[str] = []
    for subset in selection.subsets:
        splits = subset_files(selection.repository, subset, selection.revision)
        if selection.split is None or selection.split not in splits:
            raise UserError(
                f"{selection.repository}, subset {subset}: no split {selection.split}; "
                f"its splits are {', '.join(splits)}"
            )
        files = sorted(splits[selection.split])[selection.skip_files :][: selection.take_files]
        if not files:
            raise UserError(
                f"{selection.repository}, subset {subset}: no files after the first "
                f"{selection.skip_files}"
            )
        selected += files
    return selected


def names_of(selection: HubFiles, listing: Listing) -> tuple[str, ...]:
    """Return the paths of a selection's files in the repository, in the order of reading.

    Raises:
        UserError: the repository lacks a file, a subset or a split.
        MissingEnvironmentError: as in `subset_files`.
    """
    prefix = f"{hub_location(listing.repository, listing.kind)}@{listing.commit}/"
    if selection.names:
        names = list(selection.names)
    elif selection.split is not None:
        names = files_of_split(replace(selection, revision=listing.commit))
    else:
        names = [_CARD] if _CARD in listing.files else []
        for subset in selection.subsets:
            splits = subset_files(listing.repository, subset, listing.commit)
            names += [name for files in splits.values() for name in files]
    relative = [name.removeprefix(prefix) for name in dict.fromkeys(names)]
    for name in relative:
        if name not in listing.files:
            raise UserError(f"{listing.repository}: has no file {name} at {listing.commit}")
    return tuple(relative)


def fetch_selection(
    selection: HubFiles, listing: Listing, names: Sequence[str], store: Path
) -> None:
    """Fetch files of a data set into the store; the artifact appears when it is complete.

    If the process is killed, the next call keeps the files that are complete.

    Raises:
        UserError, MissingEnvironmentError, StageFailedError: as in `repository.fetch_files`.
        BusyError: another process is fetching the same files.
    """
    out = fetched_path(store, selection)
    parts = resumable_path(out)
    with publishing(out, kept=_KEPT) as work:
        make_folder(parts)
        hashes = fetch_files(listing, names, parts)
        for name in hashes:
            make_folder((work.folder / FILES / name).parent)
            (parts / name).rename(work.folder / FILES / name)
        record = FetchedRecord(
            source=listing.repository,
            commit=listing.commit,
            licence=listing.licence,
            names=tuple(names),
        )
        parent = Parent(
            role="dataset", location=listing.location, identity=f"commit:{listing.commit}"
        )
        _publish(work, record, parent, hashes)
    shutil.rmtree(parts, ignore_errors=True)


def fetch_web_file(selection: WebFile, store: Path) -> None:
    """Fetch a file that is not on the hub, with the name in its URL, into the store.

    Raises:
        MissingEnvironmentError: the server cannot be reached.
        BusyError: another process is fetching the same file.
    """
    url = selection.url
    name = url.rpartition("/")[2]
    with publishing(fetched_path(store, selection)) as work:
        make_folder(work.folder / FILES)
        path = work.folder / FILES / name
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as response:
                # Reading in pieces would not notice that the connection ended too early.
                content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise MissingEnvironmentError(
                f"{url}: cannot be downloaded ({error})", hint="Run the same command again."
            ) from error
        path.write_bytes(content)
        digest = sha256_of(path)
        record = FetchedRecord(source=url, commit=None, licence=None, names=(name,))
        parent = Parent(role="dataset", location=url, identity=f"sha256:{digest}")
        _publish(work, record, parent, {name: digest})


def _publish(work: Work, record: FetchedRecord, parent: Parent, hashes: Mapping[str, str]) -> None:
    """Write the record, then the manifest; `hashes` are the hashes of the files."""
    write_json(work.folder / RECORD, codec.to_json(record))
    paths = {f"{FILES}/{name}": digest for name, digest in hashes.items()}
    paths[RECORD] = sha256_of(work.folder / RECORD)
    entries = [file_entry(work.folder, path, sha256=digest) for path, digest in paths.items()]
    provenance = collect_provenance(sys.argv, seeds={})
    work.finish(FETCHED_KIND, [parent], provenance, entries)
