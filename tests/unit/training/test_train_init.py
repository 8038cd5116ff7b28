"""Whatever a config.json says: a model that is trained as it trains itself, or one message."""

import json
import random
from pathlib import Path

import pytest

from amnesia_bench.errors import AmnesiaError, UserError
from amnesia_bench.training.loss_check import check_loss
from amnesia_bench.training.models import check_supported, load_for_training
from amnesia_bench.weights.checkpoint import open_checkpoint
from tests.support.mutations import mutated
from tests.support.training_runs import write_hypenet, write_teacher


def start(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    check_supported(checkpoint)
    check_loss(load_for_training(checkpoint, "fp32", None, first=True), folder)


@pytest.mark.parametrize("write", [write_hypenet, write_teacher])
def test_a_config_with_anything_in_it_is_refused_or_trained(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = write(tmp_path / "init")
    start(folder)
    path, rng = folder / "config.json", random.Random(0)
    honest = json.loads(path.read_text())
    refused = 0
    for _ in range(60):
        path.write_text(json.dumps(mutated(honest, rng)))
        try:
            start(folder)
        except AmnesiaError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("kind", [None, 7, ["llama"], {}, True])
def test_a_model_type_that_is_no_name(kind: object, tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "init")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": kind}))
    with pytest.raises(UserError, match=r"model_type in config.json is"):
        start(folder)
