"""A run that was killed and resumed is the run that was not: weights, moments, metrics, data."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.checkpoints import tensor_bytes
from tests.support.deadly_training import Deadly, keeps_saves, run_and_die
from tests.support.training_runs import (
    Started,
    TinyJob,
    train_here,
    training_run,
    write_data,
    write_hypenet,
)

STEPS = 8
EVERY = 3


def job(folder: Path, out: str, *, asynchronous: bool = False, **changes: object) -> TinyJob:
    saves = {"every_steps": EVERY, "keep": 2, "asynchronous": asynchronous}
    run = training_run({"steps": STEPS, "checkpoints": saves} | changes)
    return TinyJob(run=run, init=folder / "init", data={"sft": folder / "data"}, out=folder / out)


def last_save(out: Path) -> dict[str, str]:
    """Hashes of the tensors' files of the last save of a run that kept them."""
    folders = sorted(out.with_name(f"{out.name}.training").glob("checkpoints/step-*"))
    assert [folder.name for folder in folders] == ["step-00000003", "step-00000006"]
    saved = json.loads((folders[-1] / "complete.json").read_text())
    # The metadata hold a random name of each save.
    return {f["path"]: f["sha256"] for f in saved["files"] if f["path"] != ".metadata"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_hypenet(folder / "init")
    write_data(folder / "data")
    for size in (1, 2):
        started = Started(job(folder, f"whole{size}"), size, keeps_saves)
        assert started.wait() == [0] * size, started.said
    return folder


def assert_same(whole: Path, resumed: Path) -> None:
    assert (resumed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert tensor_bytes(resumed) == tensor_bytes(whole)
    assert last_save(resumed) == last_save(whole)
    assert [path.name for path in resumed.parent.glob(f".{resumed.name}*")] == []


@pytest.mark.parametrize(
    ("size", "asynchronous", "deaths"),
    [
        (1, False, [("save", 20), ("step", 4), ("torn", 7)]),
        (1, True, [("save", 200)]),
        (2, False, [("step", 4)]),
        (2, True, [("complete", 0)]),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    folder: Path, size: int, asynchronous: bool, deaths: list[tuple[str, int]]
) -> None:
    mine = job(folder, f"resumed{size}{asynchronous}", asynchronous=asynchronous)
    for place, count in deaths:
        assert run_and_die(mine, Deadly(place, count), size), (place, count)
        assert not mine.out.exists()
    started = Started(mine, size, keeps_saves)
    assert started.wait() == [0] * size, started.said
    assert_same(folder / f"whole{size}", mine.out)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_killed_at_random_moments_equals_uninterrupted(
    folder: Path, size: int, asynchronous: bool
) -> None:
    rng = random.Random(10 * size + asynchronous)
    places = ["step", "save", "hash", "complete", "renamed", "torn", "export"]
    deaths = runs = 0
    while deaths < 8:
        runs += 1
        mine = job(folder, f"random{size}{asynchronous}{runs}", asynchronous=asynchronous)
        for _ in range(3):
            deadly = Deadly(rng.choice(places), rng.randrange(4))
            if rng.random() < 0.5:
                deadly = Deadly("clock", rng.uniform(0.3, 3.0), rng.randrange(size))
            if not run_and_die(mine, deadly, size):
                break
            deaths += 1
        if not mine.out.exists():
            started = Started(mine, size, keeps_saves)
            assert started.wait() == [0] * size, started.said
        assert_same(folder / f"whole{size}", mine.out)


@pytest.mark.parametrize(("killed", "left"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(folder: Path, killed: int, left: int) -> None:
    mine = job(folder, f"{killed}to{left}")
    assert run_and_die(mine, Deadly("step", 6), killed)
    started = Started(mine, left)
    assert started.wait() == [0] * left, started.said
    lines = [
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (folder / "whole2", mine.out)
    ]
    for whole, resumed in zip(*lines, strict=True):
        assert resumed["batch_checksum"] == whole["batch_checksum"]
        assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert resumed["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_what_changes_no_result_may_change_between_starts(folder: Path) -> None:
    mine = job(folder, "other_saves")
    assert run_and_die(mine, Deadly("step", 6), 1)
    saves = {"every_steps": 1, "keep": 1, "asynchronous": True}
    # As after a GPU that ran out of memory.
    smaller = {"activation_checkpointing": "full", "loss_chunk_rows": 16, "name": "other"}
    again = replace(mine, run=training_run({"steps": STEPS, "checkpoints": saves} | smaller))
    assert train_here(again) == 0
    noted = json.loads((mine.out / "training.json").read_text())["run"]["train"]
    assert noted["activation_checkpointing"] == "full"
    assert tensor_bytes(mine.out) == tensor_bytes(folder / "whole1")
