"""Texts in batches, special tokens understood or not, and the token that ends documents."""

from pathlib import Path

import pytest

from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.errors import UserError
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.shared import shared_path
from tests.support.small_data import save_tokenizer


def test_special_tokens_in_a_web_page_are_plain_characters(tmp_path: Path) -> None:
    tokenizer = DataTokenizer(load_tokenizer(save_tokenizer(tmp_path)))
    text = "a<|im_end|>b"
    understood, lengths = tokenizer.encode_batch([text, ""], special_tokens=True)
    assert lengths.tolist() == [3, 0]
    assert understood[1] == tokenizer.id_of("<|im_end|>")
    plain, lengths = tokenizer.encode_batch([text], special_tokens=False)
    assert lengths.tolist() == [len(text)] == [len(plain)]


def test_a_separator_must_be_a_token(tmp_path: Path) -> None:
    tokenizer = DataTokenizer(load_tokenizer(save_tokenizer(tmp_path)))
    assert tokenizer.separator("eos") == tokenizer.id_of("<|im_end|>")
    assert tokenizer.separator("<|endoftext|>") == tokenizer.pad_token
    with pytest.raises(UserError, match=r"rows.separator=<eod>: .* has no such token"):
        tokenizer.separator("<eod>")


def test_batches_are_what_transformers_gives(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = shared_path("data", "qwen2_tokenizer")
    texts = ["Hello, world!", "", "  \n\n x\u0301 = 12345 <|im_end|> Ünï", "日本語 \U0001f600"]
    tokens, lengths = DataTokenizer(load_tokenizer(folder)).encode_batch(texts, special_tokens=True)
    expected = AutoTokenizer.from_pretrained(str(folder))(texts)["input_ids"]
    assert lengths.tolist() == [len(ids) for ids in expected]
    assert tokens.tolist() == [token for ids in expected for token in ids]
