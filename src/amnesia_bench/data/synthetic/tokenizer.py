"""A tokenizer for synthetic texts: byte-level BPE with a token for each pair of hex digits.

Numbers and uuids are split into such pairs from the left, and a dash in a uuid is part of the token
of the pair before it. The split does not depend on the context. So a needle's value is a short
sequence of tokens that are rarely equal, which a small model can learn to copy. Words outside the
generators' vocabulary, such as the keys of NIAH's needles, are split into shorter pieces, if
necessary into bytes, so every text can be encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amnesia_bench.config.data_schema import SyntheticSource
from amnesia_bench.data.synthetic.generators import SIZED, synthetic_rows
from amnesia_bench.errors import MissingEnvironmentError

VOCABULARY = 1280
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = ("<think>", "</think>")

# The tokenizer does not depend on the instruction controls, which have no words of their own.
_GENERATORS = (
    "prose",
    "haystack",
    "mathematics",
    "copies",
    "varied_copies",
    "word_problems",
    "conversations",
    "programs",
    "test_problems",
)
_ROWS, _WORDS = 400, 150
_PAIRS = [f"{value:02x}{dash}" for value in range(256) for dash in ("", "-0")]
# How often the training text repeats each pair: more often than any word piece occurs that could
# take its place in the vocabulary.
_PAIR_COUNT = 500
# The pieces into which a text is split before BPE, in order of preference: pairs of hex digits that
# are not part of a longer word; words that are not runs of hex digits; single digits; other
# symbols; whitespace. The pattern is adapted from GPT-2's.
_PIECES = (
    r"[0-9a-f]{1,2}(?:-(?=[0-9a-f])|(?=[0-9a-f]*(?![0-9A-Za-z])))"
    r"| ?(?![0-9a-f]{2,}(?![0-9A-Za-z]))\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"
)

# ChatML as in Qwen3: only answers after the last user message have a think block, which is empty if
# the answer has no chain of thought.
CHAT_TEMPLATE = """\
{%- set asked = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set asked.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- set answer = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.index0 > asked.last %}
            {%- set thought = message.content.split('</think>')[0].split('<think>')[-1] %}
            {%- if '</think>' not in message.content %}{%- set thought = '' %}{%- endif %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- answer }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def write_tokenizer(folder: Path, seed: int) -> None:
    """Train a tokenizer on generated rows, and save it to `folder` as a fast tokenizer.

    Raises:
        MissingEnvironmentError: transformers is not installed.
    """
    try:
        from tokenizers import (
            AddedToken,
            Regex,
            Tokenizer,
            decoders,
            models,
            pre_tokenizers,
            trainers,
        )
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise MissingEnvironmentError(
            f"training a tokenizer needs transformers ({error})",
            hint='pip install "amnesia-bench[train]"',
        ) from error
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIALS) - len(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(seed), trainer)
    backend.add_special_tokens([AddedToken(mark, normalized=False) for mark in SPECIALS])
    backend.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    whole: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    whole.chat_template = CHAT_TEMPLATE
    whole.save_pretrained(folder)


def _texts(seed: int) -> Iterator[str]:
    for generator in _GENERATORS:
        source = SyntheticSource.model_validate(
            {
                "generator": generator,
                "rows": _ROWS,
                "words": _WORDS if generator in SIZED else None,
                "seed": seed,
            }
        )
        for row in synthetic_rows(source):
            yield from _strings(json.loads(json.dumps(row)))
    yield from _PAIRS * _PAIR_COUNT


def _strings(value: object) -> Iterator[str]:
    """Yield all texts in a row, without think tags."""
    if isinstance(value, str):
        yield value.replace("<think>", "").replace("</think>", "")
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
