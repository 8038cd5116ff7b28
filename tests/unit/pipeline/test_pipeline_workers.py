"""Workers are processes: they end with the scheduler, and their commands end with them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from amnesia_bench.errors import StageFailedError
from amnesia_bench.pipeline import scheduler, worker
from amnesia_bench.pipeline.scheduler import SchedulerResult, run_stages
from amnesia_bench.pipeline.specs import write_specs
from amnesia_bench.pipeline.stage_process import StageLauncher
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.store.processes import process_start
from tests.support.pipelines import wait_until

# A worker that does what its stage is called, in the folder that should be a store.
WORKER = """\
import os, signal, subprocess, sys
from pathlib import Path
store, stage, *options = sys.argv[1:]
attempt = sum(path.name.startswith(f"{stage}.start") for path in Path(store).iterdir())
Path(store, f"{stage}.start{attempt}").write_text(" ".join(options[:-2]))
if stage.startswith("waits"):
    assert options[-2] == "--driver"
    os.read(int(options[-1]), 1)
    Path(store, f"{stage}.ended").touch()
    sys.exit(143)
if stage == "killed":
    command = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(store, f"command{attempt}").write_text(str(command.pid))
    os.kill(os.getpid(), signal.SIGKILL)
if stage == "fails":
    sys.exit("\\n".join(f"line {number}" for number in range(20)))
if stage == "does":
    print(stage)
"""


class FakeStage:
    def __init__(self, stage_id: str) -> None:
        self.id, self.inputs, self.gpus = stage_id, (), 0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "fake_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setattr(scheduler, "_WORKER", "fake_worker")
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def run(store: Path, *ids: str, options: tuple[str, ...] = ()) -> SchedulerResult:
    stages = [FakeStage(each) for each in ids]
    return run_stages(
        store, stages, dict.fromkeys(ids, 1), len(ids), 0, dict.fromkeys(ids, options)
    )


def names(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir())


def test_a_worker_that_did_its_stage_prints_it(store: Path) -> None:
    result = run(store, "does", "finds it done", options=("--server", "/run/socket"))
    assert result == SchedulerResult(done=frozenset(["does"]), failed=None)
    assert (store / "does.start0").read_text() == "--server /run/socket"
    assert names(store) == ["does.start0", "finds it done.start0"]


def test_the_end_of_what_a_worker_says_is_kept(store: Path) -> None:
    result = run(store, "fails", "does")
    lines = "\n".join(f"line {number}" for number in range(12, 20))
    assert result == SchedulerResult(done=frozenset(["does"]), failed=lines)
    assert names(store) == ["does.start0", "fails.start0", "fails.start1"]


@pytest.mark.parametrize("noise", [0, 30])
def test_the_message_of_a_command_is_kept_whatever_torchrun_writes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: int
) -> None:
    spec = StageSpec(
        id="trained.mine-s0-0123456789ab", kind="trained", front_door="train", request={},
        command=("train",), inputs={}, threads=1, gpus=0,
    )  # fmt: skip
    write_specs(tmp_path, [spec])

    def run_spec(store: Path, spec: StageSpec, log: Path, *_: object) -> int:
        after = [f"srun: error: line {number}" for number in range(noise)]
        lines = ["$ amnesia train", "Loading", "amnesia train: no disk", "Free some space.", *after]
        log.write_text("\n".join(lines) + "\n")
        return 4

    monkeypatch.setattr(worker, "run_spec", run_spec)
    with pytest.raises(StageFailedError, match="with code 4: amnesia train: no disk\nFree some"):
        worker.run_stage(tmp_path, spec.id, StageLauncher())


def test_the_command_of_a_worker_that_was_killed_is_ended(store: Path) -> None:
    result = run(store, "killed")
    assert result.failed == "The worker of killed was killed by signal 9."
    for attempt in range(2):
        pid = int((store / f"command{attempt}").read_text())
        wait_until(lambda: process_start(pid) in (None, -1))  # noqa: B023 - called at once


class TerminatedError(Exception):
    pass


def terminate(number: int, frame: object) -> None:
    raise TerminatedError


@pytest.mark.parametrize(
    ("number", "handler", "error"),
    [
        (signal.SIGINT, signal.default_int_handler, KeyboardInterrupt),
        (signal.SIGTERM, terminate, TerminatedError),
    ],
)
def test_a_signal_ends_the_workers_and_then_does_what_it_did_before(
    number: int, handler: Callable[..., object], error: type[BaseException], store: Path
) -> None:
    def send() -> None:
        wait_until(lambda: names(store) == ["waits a.start0", "waits b.start0"])
        os.kill(os.getpid(), number)

    before = signal.signal(number, handler)
    sender = threading.Thread(target=send)
    try:
        sender.start()
        with pytest.raises(error):
            run(store, "waits a", "waits b")
        assert signal.getsignal(number) is handler
    finally:
        sender.join()
        signal.signal(number, before)
    assert names(store) == [
        "waits a.ended", "waits a.start0", "waits b.ended", "waits b.start0",
    ]  # fmt: skip
