"""Needle-in-a-haystack prompts on disk: each haystack text once, and the samples as columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HaystackSource:
    """The essays of niah_single_2 and niah_single_3, and the model that split them into sentences.

    `source` is the origin of the essays. The haystack consists of `copies` copies of them, with
    `words` words in total. `sha256` is the hash of the words of one copy, joined by spaces.
    `splitter` is the origin of the sentence splitter's model, and `splitter_sha256` the hash of the
    model's parameters.
    """

    source: str
    sha256: str
    words: int
    copies: int
    splitter: str
    splitter_sha256: str


@dataclass(frozen=True, kw_only=True)
class NiahPrompts:
    """The settings that all prompt sets of an artifact share.

    `generator` names the program whose prompts are reproduced byte for byte. `tokenizer_sha256` is
    the tokenizer's identity, as in `DataDescription`; older versions of amnesia-bench stored
    another hash. `haystack` is None if no task needs essays. `cells` are the names of the prompt
    sets.
    """

    generator: str
    tokenizer_sha256: str
    words_sha256: str
    seed: int
    haystack: HaystackSource | None
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TokenizerParts:
    """The identity of a tokenizer (everything that determines how it splits a text), in two parts.

    `sha256` is the hash of its normaliser, pre-tokeniser and vocabulary. `added_tokens` maps the
    content of each added token to its entry in tokenizer.json, as JSON. They are kept apart because
    fine-tunes often add tokens, which affect only texts that contain them.
    """

    sha256: str
    added_tokens: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class NiahDocument:
    """A haystack of `units` words or lines.

    It consists of the first `shared` characters of the stored text, followed by `tail`. The tail
    can differ from the stored text, since the haystack is truncated before it is split into
    sentences, which can change its last sentences.
    """

    units: int
    shared: int
    tail: str

    @property
    def characters(self) -> int:
        """The length of the document, in characters."""
        return self.shared + len(self.tail)


@dataclass(frozen=True, kw_only=True)
class NiahSamples:
    """The samples of a prompt set, as columns with one item per sample.

    `document` is the index of the haystack in the set's `documents`. `position` is the character
    offset in the haystack at which the needle is inserted. `length` is the length as lm-eval
    defines it: the number of tokens of the input, plus 128 for the answer. `prompt_tokens` is the
    number of tokens of the prompt without special tokens; of these, the tokens of the needle are
    [needle_start, needle_end). `prompt_sha256` is the hash of the prompt in UTF-8, as in lm-eval's
    sample logs.
    """

    document: tuple[int, ...]
    position: tuple[int, ...]
    depth_percent: tuple[float, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    length: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    needle_start: tuple[int, ...]
    needle_end: tuple[int, ...]
    prompt_sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in vars(self).items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns of different lengths: {lengths}")


@dataclass(frozen=True, kw_only=True)
class PromptSetRecord:
    """The prompts of one task at one context length.

    `context_tokens` is lm-eval's max_seq_length. `spliced` is true if the token ids of the haystack
    and of the inserted texts, joined together, equal those of the complete prompt.
    """

    task: str
    context_tokens: int
    spliced: bool
    documents: tuple[NiahDocument, ...]
    samples: NiahSamples

    @property
    def name(self) -> str:
        """The name of the prompt set, which is also the task in the keys of its samples."""
        return f"{self.task}@{self.context_tokens}"

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """The length of each prompt in tokens, without special tokens."""
        return self.samples.prompt_tokens
