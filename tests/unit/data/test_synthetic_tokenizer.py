"""The tokenizer for generated texts: whole, reproducible, and fit for all that reads tokens."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from amnesia_bench.config.data_schema import Qwen3Chat
from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.data.rendering import check_template
from amnesia_bench.data.synthetic.generators import SIZED, UNSIZED
from amnesia_bench.data.synthetic.tokenizer import VOCABULARY, write_tokenizer
from amnesia_bench.recall.niah.splicing import Span, SplicedText, joined, tokenize
from amnesia_bench.tokenizers.chat_format import prompt_format, prompt_tokens
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.synthetic import rows_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, seed=0)
    return folder


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def test_the_same_seed_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, seed=0)
    names = sorted(path.name for path in folder.iterdir())
    assert "tokenizer.json" in names
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_whatever_is_generated_or_not_comes_back(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    texts = [text for name in (*SIZED, *UNSIZED) for text in strings(rows_of(name, 20, seed=9))]
    texts += ["Ünïcode, 漢字 and\ttabs\n\n  spaces 007", "abrasive-lecture: 6b1c9a0e"]
    for text in texts:
        assert (
            tokenizer.decode(tokenizer(text).input_ids, clean_up_tokenization_spaces=False) == text
        )


def test_values_fall_into_pairs_and_common_words_are_tokens(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == VOCABULARY
    with_digits = [token for token in tokenizer.get_vocab() if set(token) & set("0123456789")]
    assert all(re.fullmatch("[0-9a-f]{1,2}-?", token) for token in with_digits)
    assert tokenizer.tokenize("is: 40701.") == ["is", ":", "Ġ", "40", "70", "1", "."]
    assert tokenizer.tokenize(" fade-0c3 + 4") == [
        "Ġ", "fa", "de-", "0c", "3", "Ġ+", "Ġ", "4",
    ]  # fmt: skip
    assert all(len(tokenizer.tokenize(f"{value:02x}")) == 1 for value in range(256))
    for word in (" special", " magic", " mentioned", " harbor", " count", "boxed", " compass"):
        assert len(tokenizer.tokenize(word)) == 1


def test_the_chat_template_is_qwen3s_and_prompts_end_before_the_answer(folder: Path) -> None:
    check_template(Qwen3Chat(loss_on="assistant"), DataTokenizer(load_tokenizer(folder)))
    tokenizer = load_tokenizer(folder)
    layout = prompt_format(tokenizer, chat=True, template=None, think=None)
    asked = tokenizer.decode(prompt_tokens(tokenizer, layout, "Hello"))
    assert asked == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer("<|im_end|><|endoftext|><think></think>").input_ids
    assert ids[:2] == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert len(ids) == 4


def test_needles_are_spliced_into_a_haystack(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    text = " ".join(row["text"] for row in rows_of("haystack", 3, words=400))
    base = SplicedText(tokenizer, text)
    assert base.moves_freely
    at = text.index(". ", len(text) // 2) + 2
    pieces: list[Span | str] = [
        Span(0, at),
        "One of the special magic numbers for abrasive-lecture is: 4070123. ",
        Span(at, len(text)),
    ]
    whole = tokenize(tokenizer, joined(text, pieces))
    assert np.array_equal(base.compose(pieces).ids(), whole.ids)


def test_the_files_hold_a_fast_tokenizer_with_its_end_and_its_padding(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (settings["eos_token"], settings["pad_token"]) == ("<|im_end|>", "<|endoftext|>")


def test_instructions_consist_of_tokens_that_pretraining_has(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)

    def tokens(*generators: str) -> set[int]:
        texts = (text for name in generators for text in strings(rows_of(name, 300)))
        return {token for text in texts for token in tokenizer(text).input_ids}

    # The last one is the chat data of stage 3.
    known = tokens("prose", "mathematics", "copies", "varied_copies", "conversations")
    used = tokens("long_instructions")
    assert len(used) > 300
    assert tokenizer.convert_ids_to_tokens(sorted(used - known)) == []
