"""train and estimate from Python: the same as the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import UserError
from amnesia_bench.records.codec import to_json
from amnesia_bench.requests.training import EstimateRequest, TrainRequest
from amnesia_bench.store.layout import MANIFEST
from tests.e2e.test_train_cli import SMALL, command, folder
from tests.support.checkpoints import tree_bytes

__all__ = ["folder"]  # a fixture


def contents(checkpoint: Path) -> dict[str, bytes]:
    """The files but for the manifest, which holds the time."""
    return {name: data for name, data in tree_bytes(checkpoint).items() if name != MANIFEST}


def test_train_makes_the_checkpoint_of_the_command(folder: Path) -> None:
    run = ab.load_training("sft_miromind_2b", SMALL)
    data = {"miromind": folder / "data"}
    ab.train(TrainRequest(run=run, init=folder / "init", data=data), folder / "ours")
    assert main(command(folder, out="theirs")) == 0
    assert contents(folder / "ours") == contents(folder / "theirs")


def test_data_are_given_for_each_source_and_in_any_order(folder: Path) -> None:
    run = ab.load_training("stage3_2b")
    data = {"ultradata_math": folder / "data"}
    with pytest.raises(UserError, match="--data fineweb_edu=FOLDER is missing"):
        ab.train(TrainRequest(run=run, init=folder / "init", data=data), folder / "refused")
    data |= {"fineweb_edu": folder / "data", "mine": folder / "data"}
    with pytest.raises(UserError, match="--data mine: not a source of this stage, which mixes"):
        ab.train(TrainRequest(run=run, init=folder / "init", data=data), folder / "refused")
    assert not (folder / "refused").exists()


def test_estimate_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    run = ab.load_training("stage2_2b")
    found = ab.estimate(EstimateRequest(run=run, processes=4, gpu="h200"))
    words = ["train", "estimate", "--config", "stage2_2b", "--processes", "4", "--gpu", "h200"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == to_json(found)
