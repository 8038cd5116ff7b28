"""Our prompts are lm-eval's: every field of every document, and every random number drawn."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amnesia_bench.recall.niah import (
    NiahPromptSet,
    build_prompts,
    open_prompt_sets,
)
from amnesia_bench.recall.niah.documents import Essays
from amnesia_bench.recall.niah.tasks import SINGLE_TASKS
from amnesia_bench.recall.niah.words import needle_keys
from amnesia_bench.records.niah import PromptSetRecord
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.niah_official import lm_eval_niah, official_documents
from tests.support.niah_texts import made_up_essay
from tests.support.niah_tokenizers import (
    train_byte_level,
    train_chunks_of_5,
    train_chunks_of_3000,
    train_metaspace,
)
from tests.support.ruler_official import recorded_streams
from tests.support.shared import shared_path


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Prompt sets of all three tasks, as many samples of each, to be made by lm-eval and by us."""

    tokenizer: Path
    lengths: tuple[int, ...]
    samples: int
    haystack: Path = field(default_factory=lambda: shared_path("data", "pg_essays_ruler.json"))

    def build(self, folder: Path) -> tuple[PromptSetRecord, ...]:
        """Build our prompt sets, and hold each against lm-eval's."""
        request = BuildPromptsRequest(
            tokenizer=self.tokenizer,
            lengths=self.lengths,
            tasks=tuple(SINGLE_TASKS),
            haystack=self.haystack,
            samples=self.samples,
        )
        with recorded_streams() as streams:
            records = build_prompts(request, folder)
        loaded = load_tokenizer(self.tokenizer)
        prompt_sets = open_prompt_sets(folder, loaded)
        assert len(prompt_sets) == len(streams) == len(SINGLE_TASKS) * len(self.lengths)
        for prompt_set, stream in zip(prompt_sets, streams, strict=True):
            self._compare(prompt_set, stream.python, loaded)
        return records

    def _compare(self, prompt_set: NiahPromptSet, stream: random.Random, tokenizer: Any) -> None:
        texts = [json.loads(self.haystack.read_text())["text"]]
        theirs, state = official_documents(
            self.tokenizer, prompt_set.task, prompt_set.context_tokens, self.samples, texts
        )
        assert len(prompt_set) == len(theirs) == self.samples
        for i, document in enumerate(theirs):
            assert prompt_set.document(i) == document
        assert stream.getstate() == state
        for i in range(0, self.samples, max(1, self.samples // 5)):
            prompt = theirs[i]["input"] + " " + theirs[i]["gen_prefix"]
            assert prompt_set.prompt(i) == prompt
            assert prompt_set.prompt_sha256(i) == hashlib.sha256(prompt.encode()).hexdigest()
            tokens = tokenizer(prompt, add_special_tokens=False).input_ids
            assert np.array_equal(prompt_set.tokens(i), tokens)
            assert prompt_set.prompt_tokens(i) == len(tokens)
            start, end = prompt_set.needle_span(i)
            assert prompt_set.values(i)[0] in tokenizer.decode(tokens[start:end])


def test_keys_and_depths_are_those_of_lm_eval() -> None:
    _, prepare_niah = lm_eval_niah()
    keys = needle_keys()
    assert len(keys) == len(prepare_niah.WORDS)
    assert keys[::101] == prepare_niah.WORDS[::101]
    assert list(Essays((), str.split).places(1)) == prepare_niah.DEPTHS


def test_prompts_are_those_of_lm_eval(tmp_path: Path) -> None:
    tokenizer = shared_path("data", "qwen2_tokenizer")
    comparison = Comparison(tokenizer=tokenizer, lengths=(300, 1024, 5000), samples=10)
    records = comparison.build(tmp_path / "prompts")
    assert all(record.spliced for record in records)


@pytest.mark.parametrize(
    ("train", "spliced"),
    [
        (train_metaspace, True),
        (train_byte_level, True),
        (train_chunks_of_5, False),
        (train_chunks_of_3000, False),
    ],
)
def test_prompts_are_those_of_lm_eval_with_any_tokenizer(
    train: Callable[[Path, str], Path],
    spliced: bool,
    tmp_path: Path,
) -> None:
    haystack = tmp_path / "essay.json"
    haystack.write_text(json.dumps({"text": f" {made_up_essay(1500)}"}))
    tokenizer = train(tmp_path / "tokenizer", made_up_essay(500))
    comparison = Comparison(
        tokenizer=tokenizer, haystack=haystack, lengths=(1000, 5000), samples=10
    )
    records = comparison.build(tmp_path / "prompts")
    assert {record.spliced for record in records} == {spliced}


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
@pytest.mark.parametrize(
    ("lengths", "samples"), [((4096, 32768), 500), ((40000,), 50), ((131072, 262144), 100)]
)
def test_long_prompts_are_those_of_lm_eval(
    lengths: tuple[int, ...], samples: int, tmp_path: Path
) -> None:
    tokenizer = shared_path("data", "qwen2_tokenizer")
    comparison = Comparison(tokenizer=tokenizer, lengths=lengths, samples=samples)
    records = comparison.build(tmp_path / "prompts")
    assert all(record.spliced for record in records)
