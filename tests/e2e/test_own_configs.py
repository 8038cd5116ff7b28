"""A config of one's own by its path, through each command that takes the name of one."""

import json
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.data import open_store
from tests.support.checkpoints import drifted, random_model, save
from tests.support.report_cells import tiny_overrides, write_all
from tests.support.small_data import save_tokenizer


def test_restore(tmp_path: Path) -> None:
    model = random_model(seed=0)
    save(tmp_path / "pre", model)
    save(tmp_path / "post", drifted(model, seed=1))
    (tmp_path / "mine.yaml").write_text("extends: qk_blend\nrule: {alpha: 0.25}\n")
    folders = [f"--{name}={tmp_path / name}" for name in ("pre", "post", "out")]
    assert main(["restore", *folders, "--variant", str(tmp_path / "mine.yaml")]) == 0
    variant = json.loads((tmp_path / "out" / "restoration.json").read_text())["variant"]
    assert (variant["name"], variant["rule"]["alpha"]) == ("mine", 0.25)


def test_data_prepare(tmp_path: Path) -> None:
    tokenizer, out = save_tokenizer(tmp_path / "tokenizer"), tmp_path / "out"
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny_prose\nsource: {rows: 20}\nsequence_tokens: 256\n")
    command = ["data", "prepare", str(path), "--tokenizer", str(tokenizer), "--out", str(out)]
    assert main(command) == 0
    described = open_store(out).description
    assert (described.name, described.sequence_tokens) == ("mine", 256)


def test_report(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: table1\ntitle: My own table\n")
    cells = [part for cell in write_all(tmp_path / "cells") for part in ("--cells", cell)]
    command = ["report", "--table", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]
    assert main([*command, *cells, *tiny_overrides()]) == 0
    assert "My own table" in (tmp_path / "out" / "mine.md").read_text()


@pytest.mark.parametrize(
    "command",
    [
        ["restore", "--pre=a", "--post=b", "--out=c", "--variant"],
        ["data", "prepare", "--tokenizer=a", "--out=c"],
        ["train", "--init=a", "--out=c", "--data=d", "--config"],
        ["report", "--out=c", "--table"],
    ],
    ids=lambda command: command[0],
)
def test_a_mistake_in_it_is_one_message_and_nothing_is_written(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("# mine\nextnds: qk\n")
    assert main([*command, "mine.yaml"]) == 2
    assert "unknown key (mine.yaml:2)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
