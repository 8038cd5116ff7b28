"""The prompts of an analysis are those that the model answers in an evaluation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import processors

from amnesia_bench.analysis import inputs
from amnesia_bench.requests.analysis import NeedlePrompts
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.small_data import save_tokenizer

TEXT = "a needle: 7. What is it? It is"
BEGIN, END = "<|im_start|>", "<|im_end|>"


class OnePrompt:
    """A prompt set with one prompt, whose needle is at the characters 2 to 11."""

    name, sha256, context_tokens = "niah_single_2@64", "0", 64

    def __init__(self, tokenizer):
        self._ids = tokenizer(TEXT, add_special_tokens=False).input_ids

    def __len__(self):
        return 1

    def tokens(self, _):
        return np.array(self._ids, dtype=np.int32)

    def needle_span(self, _):
        return 2, 11


def test_a_prompt_begins_with_special_tokens_and_ends_where_the_answer_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An EOS behind the prompt would be the query whose attention on the needle is measured."""
    tokenizer = load_tokenizer(save_tokenizer(tmp_path / "tokenizer"))
    ids = [(text, tokenizer.convert_tokens_to_ids(text)) for text in (BEGIN, END)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=ids
    )
    candidate = SimpleNamespace(tokenizer=tokenizer)
    monkeypatch.setattr(inputs, "open_candidates", lambda _: [candidate])
    monkeypatch.setattr(inputs, "open_single_needle_sets", lambda *_: [OnePrompt(tokenizer)])
    (prompt,), _ = inputs.needle_prompts(NeedlePrompts(folder=tmp_path), {"pre": tmp_path})
    assert tokenizer.decode(prompt.tokens) == f"{BEGIN}{TEXT}"
    assert prompt.needle is not None
    assert tokenizer.decode(prompt.tokens[slice(*prompt.needle)]) == "needle: 7"
