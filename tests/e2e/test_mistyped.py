"""Empty paths, values that Hydra cannot parse, misspelt keys: one clear error, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.config.files import options
from amnesia_bench.config.overrides import with_overrides
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.modeling.named_configs import check_config_keys, load_model_config
from amnesia_bench.printable import counted


@pytest.mark.parametrize(
    "words",
    [
        ["restore", "--pre", "", "--post", "POST", "--out", "OUT"],
        ["restore", "--pre=", "--post", "POST", "--out", "OUT"],
        ["restore", "--pre", "PRE", "--post", "POST", "--out", ""],
        ["diff", "", "B"],
        ["compare", "A", "B", "--out="],
        ["data", "synthesize", "tokenizer", "--out", ""],
        ["niah", "build", "--tokenizer", "", "--lengths", "1024", "--out", "OUT"],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_working_directory(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(words) == ExitCode.USER_ERROR
    assert "is empty\nIs a variable of your shell not set?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_python_refuses_empty_paths_too() -> None:
    with pytest.raises(ValueError, match="the path is empty"):
        ab.DiffRequest(a="", b="B")
    with pytest.raises(UserError, match="the path of the output is empty"):
        ab.compare(ab.CompareRequest(a="A", b="B"), out="")
    assert ab.DiffRequest(a=".", b="B").a == Path(".")  # noqa: PTH201 - what a user passes


@pytest.mark.parametrize(
    "value", ["/tmp/Übung.txt", "/tmp/rows (1).jsonl", "日本", "f(x", "{x}", "a#b"]
)
def test_a_value_that_hydra_cannot_parse_is_quoted_in_the_hint(value: str) -> None:
    with pytest.raises(UserError, match="Hydra cannot parse the value") as raised:
        with_overrides({}, [f"data.input={value}"])
    typed = str(raised.value.hint).split('"')[1]
    assert with_overrides({}, [typed]) == {"data": {"input": value}}


@pytest.mark.parametrize("word", ["data", "ä=1", "a b=1"])
def test_a_word_without_a_key_is_no_override(word: str) -> None:
    with pytest.raises(UserError, match="expected key=value"):
        with_overrides({}, [word])


def test_a_misspelt_key_of_a_model_file_is_named_with_the_key_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "mine.yaml"
    model.write_text("model_type: qwen3\nvocab_size: 300\nhiden_size: 64\n")
    words = ["init", "--model", str(model), "--tokenizer", str(tmp_path)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "hiden_size is not a key of a qwen3 config\nDid you mean hidden_size?" in said
    assert not (tmp_path / "out").exists()
    model.write_text("mixer_typs: [attn]\n")
    with pytest.raises(UserError, match=r"mixer_typs is not a key.*\nDid you mean mixer_types"):
        load_model_config(model)


def test_one_thing_is_not_many() -> None:
    assert [counted(n, "problem") for n in (0, 1, 2, 1000)] == [
        "0 problems", "1 problem", "2 problems", "1,000 problems",
    ]  # fmt: skip


def test_the_committed_models_have_known_keys() -> None:
    for name in options("model"):
        model = ab.load_model(name)
        values = {key: value for key, value in model.values.items() if key != "model_type"}
        check_config_keys(model, values, CONFIG_MAPPING[model.values["model_type"]])
