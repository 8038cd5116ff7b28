"""The record of a run, and a W&B that can do no harm."""

import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.tracking.metrics_file import FilePrefix, MetricsFile, read_metrics
from amnesia_bench.tracking.progress import progress
from amnesia_bench.tracking.tracked_run import RunHeader
from amnesia_bench.tracking.wandb_client import wandb_mode
from amnesia_bench.tracking.wandb_sink import WandbSink


def written(path: Path, steps: int) -> list[FilePrefix]:
    """Write lines of steps 1, 2, ... and return what was written after each."""
    with MetricsFile(path) as file:
        found = []
        for step in range(1, steps + 1):
            file.append({"step": step, "loss": 1 / step})
            found.append(file.written(step))
    return found


def test_lines_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = written(path, 2)[-1]
    assert kept.bytes == path.stat().st_size
    assert kept.sha256 == sha256_of(path)
    with MetricsFile(path, keep=kept) as file:
        for step in (3, 4):
            file.append({"step": step, "loss": 1 / step})
        assert file.written(4).sha256 == sha256_of(path)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4]
    assert read_metrics(path)[2]["loss"] == 1 / 3


@pytest.mark.parametrize("torn", [b"", b'{"step": 4, "lo', b"\0\0\0\n", b'{"step": 4, "loss": 1}'])
def test_later_steps_and_torn_lines_are_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = written(path, 3)
    lines = path.read_bytes()
    path.write_bytes(lines + torn)
    with MetricsFile(path, keep=kept[1]) as file:
        file.append({"step": 3, "again": True})
    assert read_metrics(path)[:2] == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert read_metrics(path)[2:] == [{"step": 3, "again": True}]
    path.write_bytes(lines + torn)
    with MetricsFile(path, keep=kept[2]):
        pass
    assert path.read_bytes() == lines
    with MetricsFile(path):  # nothing was saved: all steps are done again
        pass
    assert path.read_bytes() == b""


def test_what_was_written_up_to_a_save_must_be_there_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = written(path, 4)[2]
    lines = path.read_bytes()
    rng = random.Random(0)
    changed = [lines[: kept.bytes - 1], b"", lines.replace(b'"step": 2', b'"stfp": 2')]
    changed += [b"".join(line for line in lines.splitlines(True) if b'"step": 2' not in line)]
    for _ in range(200):
        flipped = bytearray(lines)
        flipped[rng.randrange(kept.bytes)] ^= 1 << rng.randrange(8)
        changed.append(bytes(flipped))
    for content in changed:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"metrics.jsonl: was changed since the last"):
            MetricsFile(path, keep=kept)
        assert path.read_bytes() == content
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        MetricsFile(path, keep=kept)
    assert not path.exists()


def test_a_number_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with (
        MetricsFile(tmp_path / "metrics.jsonl") as file,
        pytest.raises(ValueError, match="not JSON compliant"),
    ):
        file.append({"step": 1, "loss": float("nan")})


RUN = RunHeader(
    project="amnesia",
    run_id="tiny-out",
    name="out",
    group="hypenet_2b",
    job_type="next_token",
    config={"steps": 2},
)
NOWHERE = Path("nowhere")


class Wandb(SimpleNamespace):
    """A stand-in for the package that fails where it is told to."""

    def __init__(self, fail: str = "", only_online: bool = False) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.Settings = lambda **kwargs: kwargs
        self.teardown = lambda: self.calls.append(("teardown", None))
        self._fail, self._only_online = fail, only_online

    def _call(self, name: str, value: Any) -> None:
        self.calls.append((name, value))
        if name == self._fail:
            raise RuntimeError("down")

    def init(self, **kwargs: Any) -> Any:
        self.calls.append(("init", kwargs))
        if self._fail == "init" and not (self._only_online and kwargs["mode"] == "offline"):
            raise RuntimeError("no account")
        return SimpleNamespace(
            log=lambda metrics, step: self._call("log", (step, metrics)),
            finish=lambda exit_code: self._call("finish", exit_code),
        )


def test_metrics_reach_wandb_under_a_name_that_a_resumed_run_has_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    module = Wandb()
    sink = WandbSink(RUN, NOWHERE, module)
    sink.log({"loss": 0.5}, 7)
    sink.finish(0)
    (_, started), *rest = module.calls
    assert (started["id"], started["resume"], started["mode"]) == ("tiny-out", "allow", "online")
    assert rest == [("log", (7, {"loss": 0.5})), ("finish", 0)]


def test_a_start_that_fails_online_goes_on_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    module = Wandb("init", only_online=True)
    sink = WandbSink(RUN, NOWHERE, module)
    sink.log({}, 1)
    names = [name for name, _ in module.calls]
    assert names == ["init", "teardown", "init", "log"]
    assert [module.calls[i][1]["mode"] for i in (0, 2)] == ["online", "offline"]


@pytest.mark.parametrize(("fail", "logs"), [("init", 0), ("log", 3), ("finish", 9)])
def test_failures_never_reach_the_run_and_three_end_the_attempts(fail: str, logs: int) -> None:
    module = Wandb(fail)
    sink = WandbSink(RUN, NOWHERE, module)
    for step in range(9):
        sink.log({"loss": 1.0}, step)
    sink.finish(1)
    assert len([call for call in module.calls if call[0] == "log"]) == logs


def test_a_missing_package_is_told_and_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    sink = WandbSink(RUN, NOWHERE)
    sink.log({"loss": 1.0}, 1)
    sink.finish(0)
    assert "wandb" in caplog.text


def test_the_mode_is_online_only_with_a_key(tmp_path: Path) -> None:
    empty = {"NETRC": str(tmp_path / "none")}
    assert wandb_mode(empty) == "offline"
    assert wandb_mode(empty | {"WANDB_API_KEY": "x"}) == "online"
    assert wandb_mode(empty | {"WANDB_API_KEY": "x", "WANDB_MODE": "disabled"}) == "disabled"
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai login user password x\n")
    netrc.chmod(0o600)
    assert wandb_mode({"NETRC": str(netrc)}) == "online"


REAL = """
import sys
from pathlib import Path
from amnesia_bench.tracking.tracked_run import RunHeader
from amnesia_bench.tracking.wandb_sink import WandbSink
run = RunHeader(project="amnesia", run_id="tiny-out", name="out", group="g", job_type="sft",
                config={"steps": 2})
sink = WandbSink(run, Path(sys.argv[1]))
sink.log({"loss": 0.25}, 1)
sink.finish(0)
"""


def test_a_real_offline_run_holds_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "WANDB_MODE": "offline",
                   "PYTHONPATH": ":".join(sys.path)}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", REAL, str(tmp_path)], env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*-tiny-out/run-tiny-out.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    shown = subprocess.run(inspect, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert '"loss"' in shown.stdout
    assert "0.25" in shown.stdout


def test_progress_in_a_log_is_a_sentence_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sft", 1000, 0) as show:
        for step in range(1, 1001):
            show(step, 2.5, 1234.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sft: step 1 of 1000, loss 2.5000, 1,234 tokens/s"
    assert lines[-1].startswith("sft: step 1000 of 1000")
    assert len(lines) <= 3
