"""Data that was fetched into the store, so that later stages read it without a network.

Readers of data sets and benchmarks first call `find_fetched`. If the store has what they need, they
read its files; otherwise they read from the hub. Each selection of files is one artifact:

<store>/hub/<id>/fetched.json   the record: repository, commit, licence, order of the files
<store>/hub/<id>/files/...      the files, with their paths in the repository
<store>/hub/<id>/manifest.json  sizes and hashes
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import StageFailedError
from amnesia_bench.records import codec
from amnesia_bench.records.hub import FetchedRecord
from amnesia_bench.store.files import read_json
from amnesia_bench.store.hashing import compare_changed, is_finished, read_manifest
from amnesia_bench.store.layout import artifact_path, store_root

FETCHED_KIND = "hub"
RECORD, FILES = "fetched.json", "files"
_HASH_DIGITS, _NAME_CHARACTERS = 12, 80


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Files of a data set on the hub.

    Attributes:
        repository: OWNER/NAME of the data set.
        revision: a commit; None selects the newest commit when the files are fetched.
        names: paths in the repository; if empty, the files of `subsets` are selected.
        subsets: names of subsets (configs); None is the default subset.
        split: select only the files of this split; None selects all splits and the card, so that
            `datasets` can load the folder like the repository.
        skip_files, take_files: of each subset, skip the first files and take the next ones; None
            takes all.
    """

    repository: str
    revision: str | None = None
    names: tuple[str, ...] = ()
    subsets: tuple[str | None, ...] = (None,)
    split: str | None = None
    skip_files: int = 0
    take_files: int | None = None

    @property
    def source(self) -> str:
        """The repository, for messages."""
        return self.repository


@dataclass(frozen=True, kw_only=True)
class WebFile:
    """One file on the web, outside of the hub."""

    url: str

    @property
    def source(self) -> str:
        """The URL, for messages."""
        return self.url


Selection = HubFiles | WebFile


@dataclass(frozen=True, kw_only=True)
class FetchedData:
    """A selection in the store: its record, and the folder with its files."""

    record: FetchedRecord
    folder: Path


def fetched_path(store: Path, selection: Selection) -> Path:
    """Return the folder of the artifact of a selection, whether or not it was fetched."""
    key = json.dumps(dataclasses.asdict(selection), sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:_HASH_DIGITS]
    words = re.findall(r"[A-Za-z0-9._]+", selection.source.removeprefix("https://"))
    name = "-".join(words)[-_NAME_CHARACTERS:].lstrip("-._") or "data"
    return artifact_path(store, FETCHED_KIND, f"{name}-{digest}")


def find_fetched(selection: Selection, store: Path | None = None) -> FetchedData | None:
    """Return the files of a selection if they were fetched into the store, else None.

    `store` None selects $AMNESIA_STORE, which stages of a pipeline set to the pipeline's store.

    Raises:
        StageFailedError: the files were changed since they were fetched.
    """
    folder = fetched_path(store or store_root(), selection)
    if not is_finished(folder):
        return None
    if findings := compare_changed(folder, read_manifest(folder)):
        raise StageFailedError(
            f"{folder}: was changed since it was fetched: {findings[0].path} {findings[0].problem}",
            hint=f"Remove the folder, then run `amnesia fetch` again: rm -r {folder}",
        )
    return FetchedData(record=read_record(folder), folder=folder / FILES)


def read_record(folder: Path) -> FetchedRecord:
    """Return the record of an artifact of fetched data.

    Raises:
        UserError: the record is damaged.
    """
    path = folder / RECORD
    return codec.from_json(FetchedRecord, read_json(path), str(path))


def fetched_records(store: Path) -> list[FetchedRecord]:
    """Return the records of all fetched data in a store, sorted by folder."""
    folders = sorted(path.parent for path in store.glob(f"{FETCHED_KIND}/*/{RECORD}"))
    return [read_record(folder) for folder in folders if is_finished(folder)]
