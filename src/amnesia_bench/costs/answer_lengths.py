"""Expected lengths of answers, from which the plan estimates decoding; limits give its bounds.

Only models that were fine-tuned on long chains of thought have an expected length. Of all others,
which may not end their answers at all, every answer is assumed to reach the limit.

The lengths are those of a published model of that kind, measured with limits at least as large as
ours. If L is an answer's length without our limit m, E[min(L, m)] is at most min(E[L], m), so they
are on the safe side for a model with answers like those of the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Sources of training data whose answers are long chains of thought.
CHAIN_OF_THOUGHT_SOURCES = frozenset({"miromind", "openthoughts3"})


@dataclass(frozen=True, kw_only=True)
class PublishedLength:
    """A published mean number of tokens per answer, and its source."""

    tokens: int
    source: str


# DeepSeek-R1-Distill-Qwen-1.5B has longer answers than the distilled 7B. A length of another source
# for scale: 917 tokens for GSM8K and the 7B (DRP, arXiv 2505.13975, abstract).
_ADAPT_THINK = (
    "DeepSeek-R1-Distill-Qwen-1.5B, at most 16,384 tokens (AdaptThink, arXiv 2505.13417, Table 1; "
    "the number was not compared with the paper)"
)
REASONING_MODEL_TOKENS: Mapping[str, PublishedLength] = {
    "gsm8k": PublishedLength(tokens=978, source=_ADAPT_THINK),
    "math500": PublishedLength(tokens=4887, source=_ADAPT_THINK),
    "aime24": PublishedLength(tokens=12_073, source=_ADAPT_THINK),
}


def expected_tokens(task: str, trained_on: frozenset[str]) -> int | None:
    """Return the expected mean number of tokens per answer; None if none is known.

    Args:
        task: the name of a reasoning benchmark.
        trained_on: the sources of the last training of the model.
    """
    published = REASONING_MODEL_TOKENS.get(task)
    reasons = bool(trained_on & CHAIN_OF_THOUGHT_SOURCES)
    return published.tokens if published is not None and reasons else None
