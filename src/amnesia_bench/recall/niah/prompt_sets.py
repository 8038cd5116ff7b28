"""Read a folder of prompts: texts, tokens, answers and the positions of the needles."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah.splicing import (
    NotSpliceableError,
    Span,
    SplicedText,
    WholeText,
    joined,
)
from amnesia_bench.recall.niah.tasks import find_task, lines_haystack, prompt_pieces
from amnesia_bench.records.codec import from_json
from amnesia_bench.records.niah import NiahPrompts, PromptSetRecord, TokenizerParts
from amnesia_bench.store.files import read_json
from amnesia_bench.store.hashing import read_manifest, verify_manifest
from amnesia_bench.tokenizers.tokenizer import legacy_tokenizer_identity, tokenizer_parts

# Names of the files in a folder of prompts.
KIND = "niah_prompts"
PROMPTS = "prompts.json"
HAYSTACK = "haystack.txt.gz"  # the joined sentences, as far as a prompt needs them
TOKENIZER = "tokenizer_parts.json"  # absent in folders of older versions, which have another hash
PROMPT_SETS = "cells"

# Longer than any added token's text.
_SEAM_CHARACTERS = 512


def open_prompt_sets(folder: Path, tokenizer: Any) -> tuple[NiahPromptSet, ...]:
    """Open a folder of prompts; the haystack's source is not needed.

    Args:
        folder: a folder that `amnesia niah build` wrote.
        tokenizer: the tokenizer that the prompts were built for, or one that turns them into the
            same tokens; see `check_same_tokens`.

    Raises:
        UserError: the folder holds no prompts, is damaged, or was built for another tokenizer.
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
    records = []
    for name in prompts.cells:
        path = folder / PROMPT_SETS / f"{name}.json"
        records.append(from_json(PromptSetRecord, read_json(path), str(path)))
    essays = _Haystack(tokenizer, _essays(folder, prompts))
    lines = _Haystack(tokenizer, _lines(records))
    prompt_sets = tuple(
        NiahPromptSet(
            record, essays if find_task(record.task).essays else lines, prompts.tokenizer_sha256
        )
        for record in records
    )
    texts = (text for prompt_set in prompt_sets for text in prompt_set.texts())
    check_same_tokens(folder, prompts.tokenizer_sha256, tokenizer, texts)
    return prompt_sets


def check_same_tokens(
    folder: Path, tokenizer_sha256: str, tokenizer: Any, texts: Iterable[str]
) -> None:
    """Refuse a tokenizer that may turn the prompts into other tokens.

    A fine-tune often adds tokens (`<think>`, a padding token), which do not matter for a text
    without them. Any other difference is refused.

    Args:
        folder: the folder of the prompts.
        tokenizer_sha256: the tokenizer's hash in the record of the prompts. It is compared for a
            folder of an older version, which lacks the parts of its tokenizer.
        tokenizer: the tokenizer to use.
        texts: texts that together contain every short string of the prompts. They are read only
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
    # Some added tokens are matched in the normalised text, others in the raw text.
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
    """The prompts of one task at one length: lm-eval's documents, tokens and needle positions.

    Texts and tokens are built on each access: a prompt set at 256K would take a gigabyte.
    """

    def __init__(self, record: PromptSetRecord, haystack: _Haystack, tokenizer_sha256: str) -> None:
        self.task = record.task
        self.context_tokens = record.context_tokens
        self.name = record.name
        self._task = find_task(record.task)
        self._record = record
        self._samples = record.samples
        self._haystack = haystack
        self._tokenizer_sha256 = tokenizer_sha256

    def __len__(self) -> int:
        return len(self._samples.key)

    @cached_property
    def sha256(self) -> str:
        """Return the identity of the prompts and their tokens, in hex."""
        identity = [self.name, self._tokenizer_sha256, *self._samples.prompt_sha256]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def document(self, i: int) -> dict[str, Any]:
        """Return lm-eval's document, with the fields of lm-eval's own generator."""
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
        """Return the text of the prompt."""
        return joined(self._haystack.text, self._prompt_pieces(i))

    def tokens(self, i: int) -> NDArray[np.int32]:
        """Return the tokens of `prompt(i)`, int32 [T], without special tokens."""
        return self._haystack.ids(self._prompt_pieces(i), spliced=self._record.spliced)

    def prompt_tokens(self, i: int) -> int:
        """Return the length of `tokens(i)` without building them."""
        return self._samples.prompt_tokens[i]

    def texts(self) -> Iterator[str]:
        """Yield texts that together contain every short string of the prompts.

        These are the haystack, and for each prompt the text around its insertions: whole prompts
        are a megabyte each.
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

    def value(self, i: int) -> str:
        """Return the answer."""
        return self._samples.value[i]

    def depth_percent(self, i: int) -> float:
        """Return the depth of the needle in the haystack: 0 at its beginning, 100 at its end."""
        return self._samples.depth_percent[i]

    def needle_span(self, i: int) -> tuple[int, int]:
        """Return the index of the needle's first token in `tokens(i)`, and one past its last."""
        return self._samples.needle_start[i], self._samples.needle_end[i]

    def prompt_sha256(self, i: int) -> str:
        """Return the sha256, in hex, of the prompt's UTF-8, as lm-eval logs it."""
        return self._samples.prompt_sha256[i]

    def _pieces(self, i: int) -> list[Span | str]:
        samples = self._samples
        document = self._record.documents[samples.document[i]]
        return prompt_pieces(
            self._task, document, samples.position[i], samples.key[i], samples.value[i]
        )

    def _prompt_pieces(self, i: int) -> list[Span | str]:
        return [*self._pieces(i), " " + self._task.gen_prefix(self._samples.key[i])]


class _Haystack:
    """The text that prompt sets share; it is tokenised on the first access to its tokens."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.text = text
        self._tokenizer = tokenizer

    def ids(self, pieces: Sequence[Span | str], *, spliced: bool) -> NDArray[np.int32]:
        """Return the tokens of pieces of the text, int32 [T]."""
        if spliced:
            # This text is shorter than the one at build time. If that changes the tokens at a
            # seam, the whole prompt is tokenised.
            with suppress(NotSpliceableError):
                return self._spliced.compose(pieces).ids()
        return WholeText(self._tokenizer, self.text).compose(pieces).ids()

    @cached_property
    def _spliced(self) -> SplicedText:
        return SplicedText(self._tokenizer, self.text)


def _essays(folder: Path, prompts: NiahPrompts) -> str:
    if prompts.haystack is None:
        return ""
    return gzip.decompress((folder / HAYSTACK).read_bytes()).decode()


def _lines(records: Sequence[PromptSetRecord]) -> str:
    units = [
        document.units
        for record in records
        if not find_task(record.task).essays
        for document in record.documents
    ]
    return lines_haystack(max(units, default=0))
