"""Build all prompt sets for one tokenizer, and write them as one artifact."""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah.documents import Essays, HaystackDocuments, Lines
from amnesia_bench.recall.niah.generate import PromptSetMaker, TooShortError
from amnesia_bench.recall.niah.haystack import Haystack, read_haystack
from amnesia_bench.recall.niah.prompt_sets import (
    HAYSTACK,
    KIND,
    PROMPT_SETS,
    PROMPTS,
    TOKENIZER,
)
from amnesia_bench.recall.niah.splicing import SplicedText
from amnesia_bench.recall.niah.tasks import SEED, NiahTask, find_task
from amnesia_bench.recall.niah.words import WORDS_SHA256, needle_keys
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.codec import to_json
from amnesia_bench.records.niah import HaystackSource, NiahPrompts, PromptSetRecord
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.store.files import write_json
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from amnesia_bench.tokenizers.sentences import sentence_splitter
from amnesia_bench.tokenizers.tokenizer import (
    load_tokenizer,
    tokenizer_identity,
    tokenizer_parts,
)

_GENERATOR = "lm-eval 0.4.13"
_FIRST_GUESS_UNITS = 1000


def build_prompts(request: BuildPromptsRequest, out: Path) -> tuple[PromptSetRecord, ...]:
    """Build the prompts, write them to `out` atomically, and return their records.

    Raises:
        UserError: the request is impossible (an unknown task, a haystack that is too short, a
            length that is too small for the text around the haystack, ...), or `out` exists.
        MissingEnvironmentError: the word lists for the keys, the model of the sentence splitter or
            the hub are not available.
    """
    tasks = tuple(find_task(name) for name in dict.fromkeys(request.tasks))
    haystack = _read_essays(request, tasks)
    provenance = collect_provenance(sys.argv, seeds={"prompts": SEED})
    maker = _Maker(request, load_tokenizer(request.tokenizer), haystack)
    with publishing(out) as work:
        # Build the longest first, so that a haystack that is too short fails early.
        lengths = sorted(set(request.lengths), reverse=True)
        prompt_sets = tuple(maker.prompt_set(task, length) for task in tasks for length in lengths)
        _write(work.folder, prompt_sets, maker)
        work.finish(KIND, maker.parents(), provenance)
    return prompt_sets


def _read_essays(request: BuildPromptsRequest, tasks: Sequence[NiahTask]) -> Haystack | None:
    """Return the haystack of essays, or None if no task needs it."""
    if not any(task.essays for task in tasks):
        return None
    if request.haystack is None:
        raise UserError(
            "niah_single_2 and niah_single_3 hide their needles in essays",
            hint="Choose them: --haystack hub, or --haystack PATH.",
        )
    return read_haystack(request.haystack)


class _Maker:
    """Builds prompt sets; those with the same kind of haystack share its tokens."""

    def __init__(
        self, request: BuildPromptsRequest, tokenizer: Any, haystack: Haystack | None
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._haystack = haystack
        self._keys = needle_keys()
        self._bases: dict[bool, tuple[HaystackDocuments, SplicedText]] = {}
        self._tokenizer_sha256 = tokenizer_identity(tokenizer)
        self.tokenizer_parts = tokenizer_parts(tokenizer)

    def prompt_set(self, task: NiahTask, length: int) -> PromptSetRecord:
        documents, base = self._base(essays=task.essays)
        maker = PromptSetMaker(
            task=task,
            context_tokens=length,
            haystack=documents,
            tokenizer=self._tokenizer,
            base=base,
            keys=self._keys,
        )
        try:
            return maker.make(self._request.samples, Random(SEED))
        except TooShortError as error:
            assert self._haystack is not None
            raise UserError(
                f"{self._haystack.source}: its {len(self._haystack.words)} words reach "
                f"{error.tokens} tokens, but {length} are requested",
                hint=f"Request fewer than {error.tokens}, give a longer haystack, or --repeat.",
            ) from error

    def stored_haystack(self, prompt_sets: Sequence[PromptSetRecord]) -> str | None:
        """Return the part of the essays that the prompts need, or None if no task needs essays."""
        if self._haystack is None:
            return None
        _, base = self._base(essays=True)
        shared = [
            document.shared
            for prompt_set in prompt_sets
            if find_task(prompt_set.task).essays
            for document in prompt_set.documents
        ]
        return base.text[: max(shared)]

    def prompts(self, prompt_sets: Sequence[PromptSetRecord]) -> NiahPrompts:
        """Return the record that is common to all prompt sets."""
        return NiahPrompts(
            generator=_GENERATOR,
            tokenizer_sha256=self._tokenizer_sha256,
            words_sha256=WORDS_SHA256,
            seed=SEED,
            haystack=self._source(),
            cells=tuple(prompt_set.name for prompt_set in prompt_sets),
        )

    def parents(self) -> tuple[Parent, ...]:
        """Return the tokenizer and, if there is one, the haystack as parents with hashes."""
        tokenizer = Parent(
            role="tokenizer",
            location=str(self._request.tokenizer),
            identity=f"sha256:{self._tokenizer_sha256}",
        )
        if self._haystack is None:
            return (tokenizer,)
        haystack = Parent(
            role="haystack",
            location=self._haystack.source,
            identity=f"sha256:{self._haystack.sha256}",
        )
        return tokenizer, haystack

    def _source(self) -> HaystackSource | None:
        if self._haystack is None:
            return None
        splitter = sentence_splitter()
        return HaystackSource(
            source=self._haystack.source,
            sha256=self._haystack.sha256,
            words=len(self._haystack.words),
            copies=self._haystack.copies,
            splitter=splitter.origin,
            splitter_sha256=splitter.sha256,
        )

    def _base(self, *, essays: bool) -> tuple[HaystackDocuments, SplicedText]:
        if essays not in self._bases:
            self._bases[essays] = self._essays() if essays else self._tokenised(Lines())
        return self._bases[essays]

    def _essays(self) -> tuple[HaystackDocuments, SplicedText]:
        assert self._haystack is not None
        split = sentence_splitter().split
        documents, base = self._tokenised(Essays(self._haystack.words, split))
        tokens, longest = len(base.tokens.ids), max(self._request.lengths)
        if tokens >= longest or not self._request.repeat:
            return documents, base
        self._haystack = self._haystack.repeated(longest // tokens + 2)
        return self._tokenised(Essays(self._haystack.words, split))

    def _tokenised(self, documents: HaystackDocuments) -> tuple[HaystackDocuments, SplicedText]:
        """Return `documents` and a tokenised one, if possible longer than all requested lengths."""
        longest = max(self._request.lengths)
        step = documents.increment(longest)
        available = documents.available or sys.maxsize
        units = _FIRST_GUESS_UNITS
        while True:
            base = SplicedText(self._tokenizer, documents.text(min(units + step, available)))
            tokens = base.tokens_before(documents.characters(units))
            if tokens >= longest or units + step >= available:
                return documents, base
            units = math.ceil(1.02 * units * longest / max(1, tokens))


def _write(folder: Path, prompt_sets: Sequence[PromptSetRecord], maker: _Maker) -> None:
    """Write all files except the manifest."""
    write_json(folder / PROMPTS, to_json(maker.prompts(prompt_sets)))
    write_json(folder / TOKENIZER, to_json(maker.tokenizer_parts))
    text = maker.stored_haystack(prompt_sets)
    if text is not None:
        # Omit the timestamp, so that equal prompts give equal bytes.
        (folder / HAYSTACK).write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / PROMPT_SETS).mkdir()
    for prompt_set in prompt_sets:
        path = folder / PROMPT_SETS / f"{prompt_set.name}.json"
        path.write_text(json.dumps(to_json(prompt_set), separators=(",", ":")) + "\n")
