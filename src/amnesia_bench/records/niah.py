"""Records of needle-in-a-haystack prompts: each text is stored once, plus a few columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HaystackSource:
    """The essays of niah_single_2 and _3, and how they were split into sentences.

    `source` is their origin, `sha256` the hash of the words of one copy, joined by spaces. `words`
    counts the words of all `copies`. `splitter` is the origin of the sentence splitter's model,
    `splitter_sha256` the hash of its parameters.
    """

    source: str
    sha256: str
    words: int
    copies: int
    splitter: str
    splitter_sha256: str


@dataclass(frozen=True, kw_only=True)
class NiahPrompts:
    """The common settings of the prompt sets of an artifact; `cells` are the sets' names.

    `generator` names the code whose prompts are reproduced byte by byte. `tokenizer_sha256` is the
    tokenizer's identity, as in `DataDescription`; older versions stored another hash. `haystack` is
    None if no task needs essays.
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

    `sha256` covers its normaliser, pre-tokeniser and vocabulary. `added_tokens` maps the content
    of each added token to its entry in tokenizer.json, as JSON: a fine-tune often adds some, which
    only affect texts that contain them.
    """

    sha256: str
    added_tokens: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class NiahDocument:
    """A haystack of `units` words or lines.

    It consists of the first `shared` characters of the stored text and of `tail`, which differs
    from it because sentences are split again where the text is truncated.
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
    """The samples of a prompt set by column; every column has one item per sample.

    `document` is the index of the document in the set. `position` is the character offset in the
    document at which the needle is inserted. `length` is that of lm-eval: the tokens of the input
    plus 128 for the answer. `prompt_tokens` is the length of the prompt without special tokens; the
    needle's tokens are [needle_start, needle_end). `prompt_sha256` is the hash of the prompt in
    UTF-8, as in the sample logs of lm-eval.
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
    """The prompts of one task at one length.

    `context_tokens` is lm-eval's max_seq_length. `spliced`: joining the tokens of the haystack and
    of the inserted text gives the same tokens as tokenizing the whole prompt.
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
