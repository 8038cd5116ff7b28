"""What prompts with a needle in a haystack are stored as: texts once, few numbers per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HaystackSource:
    """The essays of niah_single_2 and _3, and how they were split into sentences.

    `source` says where they were found, `sha256` what they are: the hash of the words of one copy,
    joined by spaces. `words` counts them in all `copies`. `splitter` says where the model
    came from that found the sentences, `splitter_sha256` what its parameters hash to.
    """

    source: str
    sha256: str
    words: int
    copies: int
    splitter: str
    splitter_sha256: str


@dataclass(frozen=True, kw_only=True)
class NiahPrompts:
    """What the prompt sets of an artifact have in common; `cells` are their names.

    `generator` names the code whose prompts these are, byte by byte. `tokenizer_sha256` is the
    tokenizer's identity, as that of `DataDescription`; older versions stored another hash here.
    `haystack` is None when no task needs essays.
    """

    generator: str
    tokenizer_sha256: str
    words_sha256: str
    seed: int
    haystack: HaystackSource | None
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TokenizerParts:
    """What decides how a tokenizer splits a text (its identity), in two parts.

    `sha256` covers its normaliser, pre-tokeniser and vocabulary. `added_tokens` maps the content
    of each added token to its entry in tokenizer.json, as JSON: a fine-tune often adds some, which
    change no text that does not hold one.
    """

    sha256: str
    added_tokens: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class NiahDocument:
    """A haystack of `units`: words or lines.

    It is the first `shared` characters of the stored text and then `tail`, which differs from it
    because sentences are split anew where the text is cut.
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
    """The samples of a prompt set, one item of every column for each.

    `document` counts the set's documents. `position` is the character of the document that the
    needle stands before. `length` is lm-eval's: tokens of the input and 128 for the answer.
    `prompt_tokens` is that of the whole prompt without special tokens; the needle's are those
    from `needle_start` to before `needle_end`. `prompt_sha256` is that of the prompt's UTF-8,
    as in lm-eval's logs of samples.
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

    `context_tokens` is lm-eval's max_seq_length. `spliced` says that prompts put together from
    the tokens of the haystack and of what was inserted are those the tokenizer makes of the whole.
    """

    task: str
    context_tokens: int
    spliced: bool
    documents: tuple[NiahDocument, ...]
    samples: NiahSamples

    @property
    def name(self) -> str:
        """The name of the prompt set, which is also that of its task in samples' keys."""
        return f"{self.task}@{self.context_tokens}"
