from __future__ import annotations

import json
from pathlib import Path

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.tokenizers.checkpoint_tokenizer import (
    check_offsets,
    load_tokenizer,
    tokenizer_identity,
)
from tests.support.niah_texts import made_up_essay
from tests.support.niah_tokenizers import train_byte_level, train_metaspace
from tests.support.tiny_models import tiny_model

TEXT = made_up_essay(100)


def test_a_tokenizer_is_the_same_however_it_was_used_and_saved(tmp_path: Path) -> None:
    first = load_tokenizer(train_metaspace(tmp_path / "a", TEXT))
    identity = tokenizer_identity(first)
    first.pad_token = first.bos_token
    first(["a", "a b c d"], padding=True, truncation=True, max_length=3)
    assert tokenizer_identity(first) == identity
    first.save_pretrained(tmp_path / "b")
    assert {tokenizer_identity(load_tokenizer(tmp_path / "b")) for _ in range(5)} == {identity}


def test_one_other_token_is_another_tokenizer(tmp_path: Path) -> None:
    folder = train_byte_level(tmp_path / "a", TEXT)
    identity = tokenizer_identity(load_tokenizer(folder))
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["merges"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert tokenizer_identity(load_tokenizer(folder)) != identity


def test_a_missing_folder_and_one_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match=str(tmp_path)):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = train_byte_level(tmp_path / "a", TEXT)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        load_tokenizer(folder)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="Slow does not say which characters a token covers"):
        check_offsets(Slow(), "there")


def test_the_tokenizer_of_a_hypenet_is_loaded_without_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = train_byte_level(tmp_path / "a", TEXT)
    tiny_model("hypenet").config.save_pretrained(folder)
    load_tokenizer(folder)
    assert capfd.readouterr().err == ""
