"""Memory and disk are checked before training starts."""

from pathlib import Path

import pytest

from amnesia_bench.errors import StageFailedError
from amnesia_bench.store.layout import training_path
from amnesia_bench.training import room
from amnesia_bench.training.room import check_resources
from amnesia_bench.weights.checkpoint import open_checkpoint
from tests.support.training_runs import training_run, write_hypenet

RUN = training_run()


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hypenet(tmp_path_factory.mktemp("room") / "init")


def test_too_little_memory_is_said_with_both_numbers(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(init)
    monkeypatch.setattr(room, "available_cpu_bytes", lambda: 1000)
    with pytest.raises(StageFailedError, match=r"needs at least [\d,]+ bytes of memory, and 1,000"):
        check_resources(checkpoint, RUN, tmp_path / "out", on_cpu=True)
    check_resources(checkpoint, RUN, tmp_path / "out", on_cpu=False)


def test_too_little_disk_is_said_unless_the_saves_are_there(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    checkpoint, out = open_checkpoint(init), tmp_path / "out"
    with pytest.raises(StageFailedError, match="bytes are needed and 1,000 are free"):
        check_resources(checkpoint, RUN, out, on_cpu=True)
    training_path(out).mkdir()
    check_resources(checkpoint, RUN, out, on_cpu=True)
