"""Prompt sets of RULER's tasks other than the single needles: make their records, and read them.

Inputs that share a haystack are stored as spans of it. All others are in one zip archive per prompt
set, next to its record.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.recall.niah.drafts import (
    Draft,
    Drawer,
    Pieces,
    TokenMeter,
    delimiter,
    draw_all,
)
from amnesia_bench.recall.niah.splicing import (
    Composed,
    Span,
    SplicedText,
    joined,
    tokenize,
)
from amnesia_bench.recall.niah.streams import RandomStreams
from amnesia_bench.recall.niah.tasks import RecallTask
from amnesia_bench.records.ruler import RulerPromptSet, RulerSample

# Compression level 1 is a few times as fast as the default, for files that are a quarter larger.
_COMPRESSION_LEVEL = 1
_BEGINNING = 20_000  # characters in which a dependence on the position is looked for
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time, so that equal prompts give equal bytes
# In characters; longer than any added token.
_SEAM_CHARACTERS = 512


def make_prompt_set(
    task: RecallTask,
    context_tokens: int,
    drawer: Drawer,
    samples: int,
    new_streams: Callable[[], RandomStreams],
    archive: Path,
) -> RulerPromptSet:
    """Draw the prompts of a task at one length, and return their record.

    Args:
        task: the task.
        context_tokens: lm-eval's max_seq_length.
        drawer: draws the prompts.
        samples: number of prompts; some may be left out, as in lm-eval.
        new_streams: returns the random generators in their first state.
        archive: the file for the inputs that share no haystack; absent if all do.

    Raises:
        TooLongError, TooShortError, UserError: see `Drawer`.
    """
    drafts = draw_all(drawer, samples, new_streams)
    meter = drawer.meter
    if not _agrees(task, drafts[0], meter):
        meter.measure_whole_texts()
    local = not meter.base_text and _end_is_local(task, drafts[0], meter)
    record = RulerPromptSet(
        task=task.name,
        context_tokens=context_tokens,
        spliced=meter.spliced,
        samples=tuple(_sample(task, draft, meter, local=local) for draft in drafts),
    )
    if not meter.base_text:
        _write_archive(archive, drafts)
    return record


def _prompt_pieces(task: RecallTask, draft: Draft, base: str) -> list[Span | str]:
    end = joined(base, draft.pieces[-1:])
    return [*draft.pieces, delimiter(task, end, draft.gen_prefix) + draft.gen_prefix]


def _agrees(task: RecallTask, draft: Draft, meter: TokenMeter) -> bool:
    """Return whether the spliced tokens of a prompt are the tokens of its complete text."""
    if not meter.spliced:
        return True
    pieces = _prompt_pieces(task, draft, meter.base_text)
    whole = tokenize(meter.tokenizer, joined(meter.base_text, pieces))
    return np.array_equal(meter.text.compose(pieces).ids(), whole.ids)


def _end_is_local(task: RecallTask, draft: Draft, meter: TokenMeter) -> bool:
    """Return whether a change at the end of a text changes only the tokens next to it."""
    pieces = _prompt_pieces(task, draft, "")
    if _tokens_after_change(task, draft, meter, pieces) != meter.tokens(pieces):
        return False
    beginning = joined("", draft.pieces)[:_BEGINNING]
    return SplicedText(meter.tokenizer, beginning).moves_freely


def _tokens_after_change(
    task: RecallTask, draft: Draft, meter: TokenMeter, pieces: Sequence[Span | str]
) -> int:
    """Return the number of tokens of a prompt, from that of the text that was measured."""
    text, new = joined("", pieces[:-1]), joined("", pieces[-1:])
    measured = draft.length - task.answer_tokens
    return meter.appended(text, measured, draft.measured_suffix, new)


def _sample(task: RecallTask, draft: Draft, meter: TokenMeter, *, local: bool) -> RulerSample:
    pieces = _prompt_pieces(task, draft, meter.base_text)
    prompt = joined(meter.base_text, pieces)
    needle: tuple[int, ...] = ()
    depth = None
    if len(draft.needles) == 1:
        (place,) = draft.needles
        depth = place.depth_percent
        needle, tokens = _needle_tokens(meter, pieces, prompt, place.start, place.end)
    elif local:
        tokens = _tokens_after_change(task, draft, meter, pieces) - meter.special_tokens
    else:
        tokens = meter.tokens(pieces) - meter.special_tokens
    texts, spans = _alternating(draft.pieces)
    return RulerSample(
        index=draft.index,
        texts=texts if meter.base_text else (),
        spans=spans,
        outputs=draft.outputs,
        gen_prefix=draft.gen_prefix,
        length=draft.length,
        prompt_tokens=tokens,
        needle=needle,
        depth_percent=depth,
        prompt_sha256=hashlib.sha256(prompt.encode()).hexdigest(),
    )


def _needle_tokens(
    meter: TokenMeter, pieces: Pieces, prompt: str, start: int, end: int
) -> tuple[tuple[int, int], int]:
    """Return the token range of the characters `start` to `end`, and the number of all tokens."""
    if meter.base_text:
        composed = meter.text.compose(pieces)
        return composed.span(start, end), len(composed)
    encoded = meter.tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False)
    return (encoded.char_to_token(start), encoded.char_to_token(end - 1) + 1), len(encoded)


def _alternating(
    pieces: Pieces,
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Return the strings before, between and after the spans of a text, and its spans."""
    texts, spans = [""], []
    for piece in pieces:
        if isinstance(piece, str):
            texts[-1] += piece
        elif piece.end > piece.start:
            spans.append((piece.start, piece.end))
            texts.append("")
    return tuple(texts), tuple(spans)


def _write_archive(path: Path, drafts: Sequence[Draft]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION_LEVEL) as file:
        for i, draft in enumerate(drafts):
            file.writestr(_member(f"{i}.txt"), joined("", draft.pieces))
            if draft.example is not None:
                file.writestr(_member(f"{i}.example.txt"), draft.example)


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def archive_of(folder: Path, name: str) -> Path:
    """Return the archive with the inputs of a prompt set, in the folder of its record."""
    return folder / f"{name}.zip"


class SharedText(Protocol):
    """The text that prompts share."""

    @property
    def text(self) -> str: ...

    def composed(self, pieces: Sequence[Span | str], *, spliced: bool) -> Composed: ...


class StoredPromptSet:
    """The prompts of one of these tasks at one length; the interface is that of `NiahPromptSet`."""

    def __init__(
        self,
        record: RulerPromptSet,
        task: RecallTask,
        base: SharedText,
        archive: Path,
        tokenizer_sha256: str,
    ) -> None:
        self.task = record.task
        self.context_tokens = record.context_tokens
        self.name = record.name
        self._task = task
        self._record = record
        self._samples = record.samples
        self._base = base
        self._archive = archive
        self._tokenizer_sha256 = tokenizer_sha256

    def __len__(self) -> int:
        return len(self._samples)

    @cached_property
    def sha256(self) -> str:
        """The identity of the prompts, their answers and their token ids: a SHA-256 in hex."""
        samples = [[sample.prompt_sha256, sample.outputs] for sample in self._samples]
        identity = [self.name, self._tokenizer_sha256, *samples]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def document(self, i: int) -> dict[str, Any]:
        """Return the document of prompt `i`, with the fields that lm-eval's generator writes."""
        sample = self._samples[i]
        document = {
            "index": sample.index,
            "input": joined(self._base.text, self._pieces(i)),
            "outputs": list(sample.outputs),
            "length": sample.length,
            "max_length": self.context_tokens,
            "gen_prefix": sample.gen_prefix,
        }
        if not sample.texts and f"{i}.example.txt" in self._members:
            document["input_example"] = self._stored(f"{i}.example.txt")
        return document

    def prompt(self, i: int) -> str:
        """Return the text of prompt `i`."""
        return joined(self._base.text, self._prompt_pieces(i))

    def tokens(self, i: int) -> NDArray[np.int32]:
        """Return the token ids of `prompt(i)`, int32 [T], without special tokens."""
        return self._base.composed(self._prompt_pieces(i), spliced=self._record.spliced).ids()

    def prompt_tokens(self, i: int) -> int:
        """Return the length of `tokens(i)` without building the token ids."""
        return self._samples[i].prompt_tokens

    def texts(self) -> Iterator[str]:
        """Yield texts that together contain every short string of the prompts."""
        for i in range(len(self)):
            parts: list[Span | str] = []
            for piece in self._prompt_pieces(i):
                if isinstance(piece, Span) and piece.end - piece.start > 2 * _SEAM_CHARACTERS:
                    parts.append(Span(piece.start, piece.start + _SEAM_CHARACTERS))
                    parts.append(Span(piece.end - _SEAM_CHARACTERS, piece.end))
                else:
                    parts.append(piece)
            yield joined(self._base.text, parts)

    def values(self, i: int) -> tuple[str, ...]:
        """Return the answers to prompt `i`."""
        return self._samples[i].outputs

    def depth_percent(self, i: int) -> float | None:
        """Return the depth of the needle, 0 to 100; None without exactly one needle to find."""
        return self._samples[i].depth_percent

    def needle_span(self, i: int) -> tuple[int, ...]:
        """Return the token range of the needle in `tokens(i)`; empty without exactly one."""
        return self._samples[i].needle

    def prompt_sha256(self, i: int) -> str:
        """Return the SHA-256, in hex, of the UTF-8 bytes of prompt `i`, as logged by lm-eval."""
        return self._samples[i].prompt_sha256

    def _pieces(self, i: int) -> list[Span | str]:
        sample = self._samples[i]
        if not sample.texts:
            return [self._stored(f"{i}.txt")]
        pieces: list[Span | str] = [sample.texts[0]]
        for span, text in zip(sample.spans, sample.texts[1:], strict=True):
            pieces += [Span(*span), text]
        return pieces

    def _prompt_pieces(self, i: int) -> list[Span | str]:
        pieces, prefix = self._pieces(i), self._samples[i].gen_prefix
        end = joined(self._base.text, pieces[-2:])
        return [*pieces, delimiter(self._task, end, prefix) + prefix]

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self._archive)

    @cached_property
    def _members(self) -> frozenset[str]:
        return frozenset(self._zip.namelist())

    def _stored(self, name: str) -> str:
        return self._zip.read(name).decode()
