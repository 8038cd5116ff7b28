"""Something writes to what a training reads while it runs: nothing is published of a mixture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import StageFailedError
from amnesia_bench.training import run as run_module
from amnesia_bench.training.recorder import Recorder
from tests.support.checkpoints import tensor_bytes
from tests.support.training_runs import TinyJob, train_here, training_run, write_data, write_hypenet


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str], TinyJob]:
    write_hypenet(tmp_path / "init")
    write_hypenet(tmp_path / "newer", seed=5)
    write_data(tmp_path / "data")

    def make(out: str) -> TinyJob:
        saves = {"every_steps": 2, "keep": 2, "asynchronous": False}
        run = training_run({"steps": 6, "checkpoints": saves})
        data = {"sft": tmp_path / "data"}
        return TinyJob(run=run, init=tmp_path / "init", data=data, out=tmp_path / out)

    return make


def test_a_start_that_is_replaced_before_it_is_loaded_is_not_trained(
    job: Callable[[str], TinyJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = run_module.build_learner

    def overtaken(*arguments: Any) -> Any:
        shutil.copyfile(tmp_path / "newer/model.safetensors", tmp_path / "init/model.safetensors")
        return build(*arguments)

    monkeypatch.setattr(run_module, "build_learner", overtaken)
    with pytest.raises(StageFailedError, match=r"init/model\.safetensors: was changed"):
        train_here(job("out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["data/tokens.npy", "init/config.json"])
def test_what_changes_while_it_is_in_use_stops_the_run_at_its_last_save(
    what: str, job: Callable[[str], TinyJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(job("whole"))
    content, times = (tmp_path / what).read_bytes(), (tmp_path / what).stat()
    record = Recorder.record

    def overtaken(self: Recorder, step: Any, seconds: Any) -> None:
        record(self, step, seconds)
        if step.step == 3:
            (tmp_path / what).write_bytes(content[:-1] + b"\n")

    monkeypatch.setattr(Recorder, "record", overtaken)
    with pytest.raises(StageFailedError, match="was changed while it was in use"):
        train_here(job("out"))
    assert not (tmp_path / "out").exists()
    saves = (tmp_path / "out.training/checkpoints").glob("step-*")
    assert [path.name for path in saves] == ["step-00000002"]
    (tmp_path / what).write_bytes(content)
    os.utime(tmp_path / what, ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.setattr(Recorder, "record", record)
    train_here(job("out"))
    assert tensor_bytes(tmp_path / "out") == tensor_bytes(tmp_path / "whole")
