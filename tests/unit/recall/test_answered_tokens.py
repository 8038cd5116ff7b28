"""A prompt with its answer: its tokens are those of the text, whatever the tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

import amnesia_bench as ab
from amnesia_bench.recall.niah import open_prompt_sets
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.niah_texts import made_up_essay
from tests.support.niah_tokenizers import train_byte_level, train_chunks_of_5, train_metaspace


@pytest.mark.parametrize("train", [train_byte_level, train_metaspace, train_chunks_of_5])
def test_the_answer_begins_with_the_first_token_of_the_value(train, tmp_path: Path) -> None:
    essay = made_up_essay(300)
    (tmp_path / "essay.txt").write_text(essay)
    checkpoint = train(tmp_path / "tokenizer", essay)
    ab.build_prompts(
        ab.BuildPromptsRequest(
            tokenizer=checkpoint,
            tasks=("niah_single_1", "niah_single_3"),
            lengths=(1500,),
            samples=2,
            haystack=tmp_path / "essay.txt",
        ),
        tmp_path / "prompts",
    )
    tokenizer = load_tokenizer(checkpoint)
    for prompt_set in open_prompt_sets(tmp_path / "prompts", tokenizer):
        for i in range(len(prompt_set)):
            tokens, first = prompt_set.answered_tokens(i)
            before = prompt_set.prompt(i) + " "
            whole = tokenizer(
                before + prompt_set.value(i), add_special_tokens=False, return_offsets_mapping=True
            )
            assert tokens.tolist() == whole.input_ids
            starts_and_ends = whole.offset_mapping
            assert starts_and_ends[first][1] > len(before) >= starts_and_ends[first - 1][1]
