"""The record of data that was fetched from the Hugging Face hub or the web for later use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FetchedRecord:
    """What an artifact of fetched data contains.

    Attributes:
        source: the repository, or the URL of a single file.
        commit: commit of the repository; None for a URL.
        licence: the licence on the repository's card; None if the card states none.
        names: the files in the order in which they are read, as paths in the repository. The
            manifest has their sizes and hashes.
    """

    source: str
    commit: str | None
    licence: str | None
    names: tuple[str, ...]
