"""Read the essays for haystacks: lm-eval's data set on the hub, or texts of the user."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench.errors import AmnesiaError, MissingEnvironmentError, UserError
from amnesia_bench.hub.fetched import HubFiles, find_fetched
from amnesia_bench.requests.recall import HubEssays
from amnesia_bench.store.json_rows import read_json_rows

_HUB_DATASET = "baber/paul_graham_essays"
_TEXT_SUFFIXES = (".txt", ".md")
_FORMATS = "Give hub, hub@REVISION, a .json, .jsonl, .txt or .md file, or a folder of such texts."


@dataclass(frozen=True, kw_only=True)
class Haystack:
    """The words of the essays, in order.

    `source` is `hub:NAME@REVISION` or a path. `copies` is the number of copies of the text in
    `words`. `sha256` is the hash of the words of one copy, joined by spaces.
    """

    words: tuple[str, ...]
    source: str
    sha256: str
    copies: int

    def repeated(self, copies: int) -> Haystack:
        """Return a haystack in which the text is repeated `copies` times."""
        text = " ".join([" ".join(self.words)] * copies)
        return replace(self, words=_split_words(text), copies=copies)


def read_haystack(source: HubEssays | Path) -> Haystack:
    """Read the words of a haystack from the hub, a file or a folder.

    Args:
        source: the essays on the hub, or the path of a file or folder.

    Raises:
        UserError: the source does not exist or contains no text.
        MissingEnvironmentError: the hub cannot be reached.
    """
    if isinstance(source, HubEssays):
        name, texts = _read_hub(source)
    elif source.exists():
        name, texts = str(source), _read_folder(source) if source.is_dir() else _read_file(source)
    else:
        raise UserError(f"{source}: no such haystack", hint=_FORMATS)
    words = _split_words(" ".join(texts))
    if not any(words):
        raise UserError(f"{name}: the haystack holds no words", hint=_FORMATS)
    try:
        digest = hashlib.sha256(" ".join(words).encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name}: contains a lone surrogate, not a character (in JSON, a \\ud... escape)"
        ) from error
    return Haystack(words=words, source=name, sha256=digest, copies=1)


def _split_words(text: str) -> tuple[str, ...]:
    # As in lm-eval, white space at the beginning or end of the text gives an empty word there. For
    # str, `split` and lm-eval's regular expression \s have the same definition of white space.
    before = [""] if text[:1].isspace() or not text else []
    after = [""] if text[-1:].isspace() else []
    return tuple(before + text.split() + after)


def essay_files(source: HubEssays) -> HubFiles:
    """Return the files of the essays on the hub."""
    return HubFiles(repository=_HUB_DATASET, revision=source.revision)


def _read_hub(source: HubEssays) -> tuple[str, Sequence[str]]:
    hint = (
        "Without a network: --haystack PATH, or in an experiment `amnesia fetch` on a machine with "
        "one."
    )
    try:
        from datasets import load_dataset
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingEnvironmentError(
            f"the hub's essays need datasets ({error})", hint='pip install "amnesia-bench[eval]"'
        ) from error
    try:
        if (fetched := find_fetched(essay_files(source))) is not None:
            revision = fetched.record.commit
            texts = load_dataset(str(fetched.folder), split="train")["text"]
        else:
            revision = source.revision or str(HfApi().dataset_info(_HUB_DATASET).sha)
            texts = load_dataset(_HUB_DATASET, split="train", revision=revision)["text"]
    except AmnesiaError:
        raise
    # Each of the underlying libraries has its own error classes for an unreachable hub.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise MissingEnvironmentError(
            f"{_HUB_DATASET} could not be read from the hub ({reason})", hint=hint
        ) from error
    return f"hub:{_HUB_DATASET}@{revision}", list(texts)


def _read_folder(folder: Path) -> list[str]:
    paths = sorted(path for path in folder.iterdir() if path.suffix in _TEXT_SUFFIXES)
    if not paths:
        raise UserError(f"{folder}: holds no .txt or .md file", hint=_FORMATS)
    return [_read_text(path) for path in paths]


def _read_file(path: Path) -> list[str]:
    if path.suffix in _TEXT_SUFFIXES:
        return [_read_text(path)]
    if path.suffix == ".jsonl":
        return _texts_of([row for _, row in read_json_rows(path, _FORMATS)], path)
    if path.suffix == ".json":
        try:
            return _texts_of(json.loads(_read_text(path)), path)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error})") from error
    raise UserError(f"{path}: unknown kind of text file", hint=_FORMATS)


def _texts_of(data: object, path: Path) -> list[str]:
    """Return the texts in `data`: an object `{"text": ...}`, or a list of these or of strings."""
    rows = data if isinstance(data, list) else [data]
    texts = [row.get("text") if isinstance(row, dict) else row for row in rows]
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise UserError(
                f"{path}: row {number} has no text", hint='Each row must be {"text": "..."}.'
            )
    return [text for text in texts if isinstance(text, str)]


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start})", hint="Is it a binary file?"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if "\0" in text:
        raise UserError(f"{path}: not text (it contains NUL characters)")
    return text
