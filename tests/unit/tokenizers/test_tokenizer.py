"""Tokenizers of checkpoint folders: no code of theirs, the splits of their tokenizer.json, and when
two of them are one.
"""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.errors import UserError
from amnesia_bench.tokenizers.tokenizer import (
    legacy_tokenizer_identity,
    load_tokenizer,
    tokenizer_identity,
)
from tests.support.niah_texts import made_up_essay
from tests.support.niah_tokenizers import train_byte_level, train_metaspace
from tests.support.small_data import save_tokenizer
from tests.support.tiny_models import tiny_model

DIGITS = "In 2023"
TEXT = made_up_essay(100)


def _digits_apart(folder: Path, **config: Any) -> Path:
    """Save a tokenizer whose file splits digits, with merges of digits that it never uses."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "20", "23"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("2", "0"), ("2", "3")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", **config)
    return folder


def _edit(path: Path, **changes: Any) -> None:
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | changes))


@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "Qwen2TokenizerFast", "Unheard"])
@pytest.mark.parametrize("model_type", [None, "llama", "qwen2", "gpt2"])
def test_texts_are_split_as_tokenizer_json_says(
    tokenizer_class: str, model_type: str | None, tmp_path: Path
) -> None:
    folder = _digits_apart(tmp_path, tokenizer_class=tokenizer_class)
    if model_type is not None:
        _edit(folder / "config.json", model_type=model_type)
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(DIGITS)
    assert expected.tokens[-4:] == ["2", "0", "2", "3"]
    loaded = load_tokenizer(folder)
    assert DataTokenizer(loaded).encode(DIGITS) == expected.ids
    assert loaded(DIGITS, add_special_tokens=False).input_ids == expected.ids


def test_transformers_still_splits_some_of_them_otherwise(tmp_path: Path) -> None:
    # Once it does not, comparing with the file is needless.
    folder = _digits_apart(tmp_path, tokenizer_class="GPT2Tokenizer")
    _edit(folder / "config.json", model_type="llama")
    assert AutoTokenizer.from_pretrained(str(folder)).tokenize(DIGITS)[-2:] == ["20", "23"]


@pytest.mark.parametrize(
    ("tokenizer_class", "model_type", "refused"),
    [("OwnTokenizer", "own", True), ("Qwen2Tokenizer", "own", False),
     ("Qwen2Tokenizer", "qwen2", False)],
)  # fmt: skip
def test_code_in_a_folder_never_runs_whatever_is_typed(
    tokenizer_class: str, model_type: str, refused: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder, ran = save_tokenizer(tmp_path / "t"), tmp_path / "ran"
    code = (
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast as OwnTokenizer, Qwen2Config as Own\n"
    )
    (folder / "own.py").write_text(code)
    auto_map = {"AutoConfig": "own.Own", "AutoTokenizer": ["own.OwnTokenizer"] * 2}
    _edit(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class, auto_map=auto_map)
    _edit(folder / "config.json", model_type=model_type, auto_map=auto_map)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    if refused:
        with pytest.raises(UserError, match="needs code from the checkpoint") as caught:
            load_tokenizer(folder)
        assert "without auto_map" in (caught.value.hint or "")
    else:
        load_tokenizer(folder)
    assert not ran.exists()


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '{"model": {}}'])
def test_a_damaged_file_is_named_or_not_needed(file: str, content: str, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path)
    tokens = load_tokenizer(folder).backend_tokenizer.encode("a b").ids
    (folder / file).write_text(content)
    try:
        loaded = load_tokenizer(folder)
    except UserError as error:
        assert "its tokenizer cannot be loaded" in str(error)  # noqa: PT017
    else:
        assert file != "tokenizer.json"
        assert loaded.backend_tokenizer.encode("a b").ids == tokens


def test_a_missing_folder_and_one_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match=str(tmp_path)):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = train_byte_level(tmp_path / "a", TEXT)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        load_tokenizer(folder)


def test_truncation_in_a_file_cuts_no_text(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path)
    before = load_tokenizer(folder)
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    _edit(folder / "tokenizer.json", truncation=truncation)
    loaded = load_tokenizer(folder)
    assert len(DataTokenizer(loaded).encode("twelve bytes")) == 12
    assert tokenizer_identity(loaded) == tokenizer_identity(before)


def test_the_tokenizer_of_a_hypenet_is_loaded_without_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = train_byte_level(tmp_path / "a", TEXT)
    tiny_model("hypenet").config.save_pretrained(folder)
    load_tokenizer(folder)
    assert capfd.readouterr().err == ""


def test_the_identity_covers_what_splits_a_text_and_nothing_else(tmp_path: Path) -> None:
    def identity(folder: Path) -> str:
        return tokenizer_identity(load_tokenizer(folder))

    plain = identity(save_tokenizer(tmp_path / "a"))
    assert identity(save_tokenizer(tmp_path / "b", template="{{ 1 }}")) == plain
    assert identity(save_tokenizer(tmp_path / "c", extra="<x>")) != plain
    for part, value in [("normalizer", {"type": "NFKC"}), ("pre_tokenizer", None)]:
        folder = save_tokenizer(tmp_path / part)
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
        assert identity(folder) != plain


def test_the_identity_does_not_depend_on_how_merges_are_written(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "pairs")
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["vocab"]["th"] = max(whole["model"]["vocab"].values()) + 100
    hashes = []
    for merges in (["t h"], [["t", "h"]]):
        whole["model"]["merges"] = merges
        path.write_text(json.dumps(whole))
        hashes.append(tokenizer_identity(load_tokenizer(folder)))
    assert hashes[0] == hashes[1]


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


def test_the_hashes_in_folders_of_older_versions_are_still_computed(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path))
    in_prepared_data = "02e02f3af2fad16c0a9199069f601093173acaf8638b4484e28fce63112e6b7b"
    in_prompts = "a28e2bd47e886ba71c4fe2850584907560f68ddaf88a457f296c07cdb1857dee"
    assert tokenizer_identity(tokenizer) == in_prepared_data
    assert legacy_tokenizer_identity(tokenizer) == in_prompts
