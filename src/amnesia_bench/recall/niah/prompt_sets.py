"""Read a folder of prompts: their texts, token ids, answers and needle positions."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah.catalogue import find_task, haystack_kind
from amnesia_bench.recall.niah.ruler_sets import StoredPromptSet, archive_of
from amnesia_bench.recall.niah.splicing import (
    Composed,
    NotSpliceableError,
    Span,
    SplicedText,
    WholeText,
    joined,
)
from amnesia_bench.recall.niah.tasks import SINGLE_TASKS, lines_haystack, prompt_pieces
from amnesia_bench.recall.niah.tracking import TRACKING_TASK, lines_up_to, noise_text
from amnesia_bench.records.codec import from_json
from amnesia_bench.records.niah import NiahPrompts, PromptSetRecord, TokenizerParts
from amnesia_bench.records.ruler import RulerPromptSet
from amnesia_bench.store.files import read_json
from amnesia_bench.store.hashing import read_manifest, verify_manifest
from amnesia_bench.tokenizers.tokenizer import legacy_tokenizer_identity, tokenizer_parts

# The artifact kind of a folder of prompts, and the names of its files and of its subfolder.
KIND = "niah_prompts"
PROMPTS = "prompts.json"
HAYSTACK = "haystack.txt.gz"  # the joined sentences, as far as the prompts need them
TOKENIZER = "tokenizer_parts.json"  # absent in folders of older versions (another tokenizer hash)
PROMPT_SETS = "cells"

# In characters; longer than any added token.
_SEAM_CHARACTERS = 512


def open_prompt_sets(folder: Path, tokenizer: Any) -> tuple[AnyPromptSet, ...]:
    """Open a folder of prompts; the original source of the haystack is not required.

    Args:
        folder: a folder that `amnesia niah build` wrote.
        tokenizer: the tokenizer for which the prompts were built, or one that gives the same token
            ids for them; see `check_same_tokens`.

    Raises:
        UserError: the folder contains no prompts, is damaged, or was built for another tokenizer.
    """
    manifest = read_manifest(folder)
    if manifest.kind != KIND:
        raise UserError(
            f"{folder}: an artifact of kind {manifest.kind}, not NIAH prompts",
            hint="Give a folder that `amnesia niah build` wrote.",
        )
    if findings := verify_manifest(folder):
        raise UserError(
            f"{folder}: damaged: " + "; ".join(f"{f.path} {f.problem}" for f in findings),
            hint="Build the prompts again, into another folder.",
        )
    prompts = from_json(NiahPrompts, read_json(folder / PROMPTS), str(folder / PROMPTS))
    records = [_read_record(folder, name) for name in prompts.cells]
    bases = {
        "essays": _Haystack(tokenizer, _essays(folder, prompts)),
        "lines": _Haystack(tokenizer, _lines(records)),
        "noise": _Haystack(tokenizer, _noise(records)),
        "": _Haystack(tokenizer, ""),
    }
    prompt_sets: list[AnyPromptSet] = []
    for record in records:
        task, identity = find_task(record.task), prompts.tokenizer_sha256
        base = bases[haystack_kind(task)]
        if isinstance(record, PromptSetRecord):
            prompt_sets.append(NiahPromptSet(record, base, identity))
        else:
            archive = archive_of(folder / PROMPT_SETS, record.name)
            prompt_sets.append(StoredPromptSet(record, task, base, archive, identity))
    texts = (base.text for base in bases.values())
    of_prompts = (text for prompt_set in prompt_sets for text in prompt_set.texts())
    check_same_tokens(folder, prompts.tokenizer_sha256, tokenizer, chain(texts, of_prompts))
    return tuple(prompt_sets)


def _read_record(folder: Path, name: str) -> PromptSetRecord | RulerPromptSet:
    path = folder / PROMPT_SETS / f"{name}.json"
    if name.partition("@")[0] in SINGLE_TASKS:
        return from_json(PromptSetRecord, read_json(path), str(path))
    return from_json(RulerPromptSet, read_json(path), str(path))


def check_same_tokens(
    folder: Path, tokenizer_sha256: str, tokenizer: Any, texts: Iterable[str]
) -> None:
    """Raise an error if a tokenizer may give different token ids for the prompts.

    A fine-tune often adds tokens (`<think>`, a padding token), which have no effect on a text
    without them. Any other difference between the tokenizers raises an error.

    Args:
        folder: the folder of the prompts.
        tokenizer_sha256: the tokenizer hash in the record of the prompts. It is compared only if an
            older version wrote the folder, which then lacks `tokenizer_parts.json`.
        tokenizer: the tokenizer to check.
        texts: texts that together contain every short string of the prompts. They are searched only
            if the added tokens differ.

    Raises:
        UserError: the tokenizer differs, or the prompts contain a token that only one of the two
            tokenizers has.
    """
    path = folder / TOKENIZER
    hint = "Build them for this one: amnesia niah build --tokenizer CHECKPOINT ..."
    another = UserError(f"{folder}: the prompts were built for another tokenizer", hint=hint)
    if not path.is_file():
        if legacy_tokenizer_identity(tokenizer) != tokenizer_sha256:
            raise another
        return
    built, parts = from_json(TokenizerParts, read_json(path), str(path)), tokenizer_parts(tokenizer)
    if built.sha256 != parts.sha256:
        raise another
    differing = {content for content, _ in built.added_tokens.items() ^ parts.added_tokens.items()}
    if not differing:
        return
    normalizer = tokenizer.backend_tokenizer.normalizer
    normalized = normalizer.normalize_str if normalizer is not None else str
    # A tokenizer matches some added tokens in the normalised text, and others in the raw text.
    normalized_contents = {content: normalized(content) for content in differing}
    for text in texts:
        normal = normalized(text)
        for content, normalized_content in normalized_contents.items():
            if content in text or normalized_content in normal:
                raise UserError(
                    f"{folder}: the prompts were built for another tokenizer, and contain "
                    f"{content!r}, which only one of the two treats as one token",
                    hint=hint,
                )


class NiahPromptSet:
    """The prompts of one task at one length: lm-eval's documents, token ids, needle positions.

    Texts and token ids are built on each access, since those of a prompt set at 256K tokens would
    occupy a gigabyte.
    """

    def __init__(self, record: PromptSetRecord, haystack: _Haystack, tokenizer_sha256: str) -> None:
        self.task = record.task
        self.context_tokens = record.context_tokens
        self.name = record.name
        self._task = SINGLE_TASKS[record.task]
        self._record = record
        self._samples = record.samples
        self._haystack = haystack
        self._tokenizer_sha256 = tokenizer_sha256

    def __len__(self) -> int:
        return len(self._samples.key)

    @cached_property
    def sha256(self) -> str:
        """The identity of the prompts and their token ids: a SHA-256 in hex."""
        identity = [self.name, self._tokenizer_sha256, *self._samples.prompt_sha256]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def document(self, i: int) -> dict[str, Any]:
        """Return the document of prompt `i`, with the fields that lm-eval's generator writes."""
        key = self._samples.key[i]
        return {
            "index": i,
            "input": joined(self._haystack.text, self._pieces(i)),
            "outputs": [self.value(i)],
            "length": self._samples.length[i],
            "max_length": self.context_tokens,
            "gen_prefix": self._task.gen_prefix(key),
        }

    def prompt(self, i: int) -> str:
        """Return the text of prompt `i`."""
        return joined(self._haystack.text, self._prompt_pieces(i))

    def tokens(self, i: int) -> NDArray[np.int32]:
        """Return the token ids of `prompt(i)`, int32 [T], without special tokens."""
        return self._composed(self._prompt_pieces(i)).ids()

    def answered_tokens(self, i: int) -> tuple[NDArray[np.int32], int]:
        """Return the token ids of `prompt(i)` followed by its answer, and where the answer begins.

        The ids end with the last token of the value. Its first token is the first with one of its
        characters, so the space before the value is not part of it if it is a token of its own.
        """
        pieces = [*self._prompt_pieces(i), " "]
        start = len(joined(self._haystack.text, pieces))
        composed = self._composed([*pieces, self.value(i)])
        first, stop = composed.span(start, start + len(self.value(i)))
        return composed.ids()[:stop], first

    def prompt_tokens(self, i: int) -> int:
        """Return the length of `tokens(i)` without building the token ids."""
        return self._samples.prompt_tokens[i]

    def texts(self) -> Iterator[str]:
        """Yield texts that together contain every short string of the prompts.

        These are the haystack, and for each prompt the text around its insertions. A complete
        prompt would take up to a megabyte.
        """
        yield self._haystack.text
        for i in range(len(self)):
            pieces: list[Span | str] = []
            for piece in self._prompt_pieces(i):
                if isinstance(piece, Span) and piece.end - piece.start > 2 * _SEAM_CHARACTERS:
                    pieces.append(Span(piece.start, piece.start + _SEAM_CHARACTERS))
                    pieces.append(Span(piece.end - _SEAM_CHARACTERS, piece.end))
                else:
                    pieces.append(piece)
            yield joined(self._haystack.text, pieces)

    def values(self, i: int) -> tuple[str, ...]:
        """Return the answers to prompt `i`."""
        return (self.value(i),)

    def value(self, i: int) -> str:
        """Return the answer to prompt `i`: the hidden value."""
        return self._samples.value[i]

    def depth_percent(self, i: int) -> float:
        """Return the depth of the needle in the haystack: 0 at its beginning, 100 at its end."""
        return self._samples.depth_percent[i]

    def needle_span(self, i: int) -> tuple[int, int]:
        """Return the index of the needle's first token in `tokens(i)`, and one past its last."""
        return self._samples.needle_start[i], self._samples.needle_end[i]

    def prompt_sha256(self, i: int) -> str:
        """Return the SHA-256, in hex, of the UTF-8 bytes of prompt `i`, as logged by lm-eval."""
        return self._samples.prompt_sha256[i]

    def _pieces(self, i: int) -> list[Span | str]:
        samples = self._samples
        document = self._record.documents[samples.document[i]]
        return prompt_pieces(
            self._task, document, samples.position[i], samples.key[i], samples.value[i]
        )

    def _composed(self, pieces: Sequence[Span | str]) -> Composed:
        return self._haystack.composed(pieces, spliced=self._record.spliced)

    def _prompt_pieces(self, i: int) -> list[Span | str]:
        return [*self._pieces(i), " " + self._task.gen_prefix(self._samples.key[i])]


class _Haystack:
    """The haystack text that prompt sets share; it is tokenised when it is first needed."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.text = text
        self._tokenizer = tokenizer

    def composed(self, pieces: Sequence[Span | str], *, spliced: bool) -> Composed:
        """Return the tokens of the concatenated pieces."""
        if spliced:
            # Only the needed part of the haystack was stored, so the tokens at a seam may differ
            # from those at build time. In that case the complete prompt is tokenised.
            with suppress(NotSpliceableError):
                return self._spliced.compose(pieces)
        return WholeText(self._tokenizer, self.text).compose(pieces)

    @cached_property
    def _spliced(self) -> SplicedText:
        return SplicedText(self._tokenizer, self.text)


def _essays(folder: Path, prompts: NiahPrompts) -> str:
    if prompts.haystack is None:
        return ""
    return gzip.decompress((folder / HAYSTACK).read_bytes()).decode()


def _lines(records: Sequence[PromptSetRecord | RulerPromptSet]) -> str:
    units = [
        document.units
        for record in records
        if isinstance(record, PromptSetRecord) and not find_task(record.task).essays
        for document in record.documents
    ]
    return lines_haystack(max(units, default=0))


def _noise(records: Sequence[PromptSetRecord | RulerPromptSet]) -> str:
    ends = [
        end
        for record in records
        if isinstance(record, RulerPromptSet) and record.task == TRACKING_TASK.name
        for sample in record.samples
        for _, end in sample.spans
    ]
    return noise_text(lines_up_to(max(ends, default=0)))


AnyPromptSet = NiahPromptSet | StoredPromptSet
