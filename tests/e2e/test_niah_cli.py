"""`amnesia niah build` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.errors import ExitCode
from amnesia_bench.recall.niah import open_prompt_sets
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.niah_texts import made_up_essay
from tests.support.niah_tokenizers import train_byte_level


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_byte_level(tmp_path_factory.mktemp("tokenizer") / "t", made_up_essay(100))


def test_prompts_are_built_and_listed(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "essay.md").write_text(made_up_essay(200))
    command = f"niah build --tokenizer {tokenizer} --lengths 1000,1500 --samples 3"
    command += f" --tasks niah_single_1,niah_single_3 --haystack {tmp_path / 'essay.md'}"
    assert main([*command.split(), "--out", str(tmp_path / "out")]) == ExitCode.DONE
    listed = capsys.readouterr().out
    prompt_sets = open_prompt_sets(tmp_path / "out", load_tokenizer(tokenizer))
    assert len(prompt_sets) == 4
    for prompt_set in prompt_sets:
        assert prompt_set.name in listed
    assert listed.count("splicing") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--lengths 32K", "not a list of lengths in tokens"),
        ("--lengths ,", "not a list of lengths in tokens"),
        ("--lengths 1000 --samples 0", "--samples 0: must be at least 1"),
        ("--lengths 1000 --tasks niah_single_4", "no task 'niah_single_4'"),
        ("--lengths 1000", "--haystack hub, or --haystack PATH"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    command = f"niah build --tokenizer {tokenizer} --out {tmp_path / 'out'} {arguments}"
    assert main(command.split()) == ExitCode.USER_ERROR
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
