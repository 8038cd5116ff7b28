"""download, initialize and convert from Python: the same checkpoints as the commands write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.requests.checkpoints import ConvertRequest, DownloadRequest, InitializeRequest
from tests.support.checkpoints import tensor_bytes
from tests.support.small_data import save_tokenizer
from tests.support.training_runs import TINY, write_teacher
from tests.unit.weights.test_hub import MODEL, Start, files, open_hub

__all__ = ["open_hub"]  # a fixture


def test_download_fetches_what_the_command_fetches(
    tmp_path: Path, open_hub: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    open_hub(files())
    found = ab.download(DownloadRequest(repository=MODEL), tmp_path / "ours")
    assert main(["download", MODEL, "--out", str(tmp_path / "theirs")]) == 0
    assert f"{MODEL} at {found.commit}, {found.files} files" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        path.name for path in (tmp_path / "theirs").iterdir()
    }


def test_initialize_makes_the_model_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    model = ab.load_model("hypenet_laptop")
    request = InitializeRequest(model=model, tokenizer=tokenizer, seed=5)
    parameters = ab.initialize(request, tmp_path / "ours")
    command = ["init", "--model", "hypenet_laptop", "--tokenizer", str(tokenizer), "--seed", "5"]
    assert main([*command, "--out", str(tmp_path / "theirs")]) == 0
    assert f"{parameters / 1e6:.2f} M random parameters" in capsys.readouterr().out
    assert tensor_bytes(tmp_path / "ours") == tensor_bytes(tmp_path / "theirs")


@pytest.mark.parametrize("stage", [1, 2])
def test_convert_makes_the_checkpoint_of_the_command(
    stage: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = write_teacher(tmp_path / "teacher")
    shape = tmp_path / "student.json"
    shape.write_text(json.dumps(TINY))
    request = ConvertRequest.model_validate(
        {"teacher": teacher, "model": ab.load_hypenet(shape), "stage": stage, "seed": 3}
    )
    config = ab.convert(request, tmp_path / "ours")
    command = ["convert", "--teacher", str(teacher), "--size", str(shape), "--stage", str(stage)]
    assert main([*command, "--seed", "3", "--out", str(tmp_path / "theirs")]) == 0
    assert f"{config.num_hidden_layers} layers" in capsys.readouterr().out
    assert tensor_bytes(tmp_path / "ours") == tensor_bytes(tmp_path / "theirs")
    with pytest.raises(ValidationError, match="Input should be 1 or 2"):
        ConvertRequest.model_validate(request.model_dump() | {"stage": 3})
