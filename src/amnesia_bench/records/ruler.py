"""Prompts of RULER's tasks with several needles or answers, or without needles, on disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RulerSample:
    """One prompt of a prompt set.

    `index` is the index of lm-eval's document. The input is `texts[0]`, then the characters
    `spans[0]` of the stored haystack, then `texts[1]`, and so on. If `texts` is empty, the input is
    in the archive of the prompt set. `outputs` are the answers, and `length` is lm-eval's: tokens
    of its text plus those reserved for the answer. `prompt_tokens` is the number of tokens of the
    prompt without special tokens. `needle` is the token range (begin, end) of the needle with the
    answer and `depth_percent` its depth, if there is exactly one; otherwise they are empty and
    None. `prompt_sha256` is the hash of the prompt in UTF-8.
    """

    index: int
    texts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    outputs: tuple[str, ...]
    gen_prefix: str
    length: int
    prompt_tokens: int
    needle: tuple[int, ...]
    depth_percent: float | None
    prompt_sha256: str

    def __post_init__(self) -> None:
        if self.texts and len(self.texts) != len(self.spans) + 1:
            raise ValueError(f"{len(self.texts)} texts around {len(self.spans)} spans")
        if not self.outputs:
            raise ValueError(f"prompt {self.index} has no answers")


@dataclass(frozen=True, kw_only=True)
class RulerPromptSet:
    """The prompts of one task at one context length.

    `context_tokens` is lm-eval's max_seq_length. `spliced` is true if the token ids of the spans
    and of the texts between them, joined together, equal those of the complete prompt.
    """

    task: str
    context_tokens: int
    spliced: bool
    samples: tuple[RulerSample, ...]

    @property
    def name(self) -> str:
        """The name of the prompt set, which is also the task in the keys of its samples."""
        return f"{self.task}@{self.context_tokens}"

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """The length of each prompt in tokens, without special tokens."""
        return tuple(sample.prompt_tokens for sample in self.samples)
