"""Tokenizers of checkpoint folders: no code of theirs, and the splits of their tokenizer.json."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from amnesia_bench.errors import UserError
from amnesia_bench.tokenizers.checkpoint_tokenizer import load_tokenizer as load_for_evaluation
from amnesia_bench.tokenizers.data_tokenizer import load_tokenizer as load_for_training
from amnesia_bench.tokenizers.tokenizer_files import load_fast_tokenizer
from tests.support.small_data import save_tokenizer

DIGITS = "In 2023"


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
    assert load_for_training(folder).encode(DIGITS) == expected.ids
    assert load_for_evaluation(folder)(DIGITS, add_special_tokens=False).input_ids == expected.ids


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
    for load in (load_for_training, load_for_evaluation):
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
        if refused:
            with pytest.raises(UserError, match="wants to run code of its own") as caught:
                load(folder)
            assert "without auto_map" in (caught.value.hint or "")
        else:
            load(folder)
    assert not ran.exists()


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '{"model": {}}'])
def test_a_damaged_file_is_named_or_not_needed(file: str, content: str, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path)
    tokens = load_fast_tokenizer(folder).backend_tokenizer.encode("a b").ids
    (folder / file).write_text(content)
    try:
        loaded = load_fast_tokenizer(folder)
    except UserError as error:
        assert "no tokenizer could be loaded" in str(error)  # noqa: PT017
    else:
        assert file != "tokenizer.json"
        assert loaded.backend_tokenizer.encode("a b").ids == tokens
