"""The identity of a tokenizer, and what can be wrong with one."""

import json
from pathlib import Path

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.tokenizers.data_tokenizer import load_tokenizer
from tests.support.shared import shared_path
from tests.support.small_data import save_tokenizer


def test_the_identity_covers_what_splits_a_text_and_nothing_else(tmp_path: Path) -> None:
    plain = load_tokenizer(save_tokenizer(tmp_path / "a"))
    assert load_tokenizer(save_tokenizer(tmp_path / "b", template="{{ 1 }}")).sha256 == plain.sha256
    assert load_tokenizer(save_tokenizer(tmp_path / "c", extra="<x>")).sha256 != plain.sha256
    for part, value in [("normalizer", {"type": "NFKC"}), ("pre_tokenizer", None)]:
        folder = save_tokenizer(tmp_path / part)
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
        assert load_tokenizer(folder).sha256 != plain.sha256


def test_the_identity_does_not_depend_on_how_merges_are_written(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "pairs")
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["vocab"]["th"] = max(whole["model"]["vocab"].values()) + 100
    hashes = []
    for merges in (["t h"], [["t", "h"]]):
        whole["model"]["merges"] = merges
        path.write_text(json.dumps(whole))
        hashes.append(load_tokenizer(folder).sha256)
    assert hashes[0] == hashes[1]


def test_special_tokens_in_a_web_page_are_plain_characters(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path))
    text = "a<|im_end|>b"
    understood, lengths = tokenizer.encode_batch([text, ""], special_tokens=True)
    assert lengths.tolist() == [3, 0]
    assert understood[1] == tokenizer.id_of("<|im_end|>")
    plain, lengths = tokenizer.encode_batch([text], special_tokens=False)
    assert lengths.tolist() == [len(text)] == [len(plain)]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)


def test_a_separator_must_be_a_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path))
    assert tokenizer.separator("eos") == tokenizer.id_of("<|im_end|>")
    assert tokenizer.separator("<|endoftext|>") == tokenizer.pad_token
    with pytest.raises(UserError, match=r"rows.separator=<eod>: .* has no such token"):
        tokenizer.separator("<eod>")


def test_batches_are_what_transformers_gives(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = shared_path("data", "qwen2_tokenizer")
    texts = ["Hello, world!", "", "  \n\n x\u0301 = 12345 <|im_end|> Ünï", "日本語 \U0001f600"]
    tokens, lengths = load_tokenizer(folder).encode_batch(texts, special_tokens=True)
    expected = AutoTokenizer.from_pretrained(str(folder))(texts)["input_ids"]
    assert lengths.tolist() == [len(ids) for ids in expected]
    assert tokens.tolist() == [token for ids in expected for token in ids]
