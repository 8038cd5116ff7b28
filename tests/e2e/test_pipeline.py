"""Stages run once, whoever is killed, whoever else runs them, whatever was damaged."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from amnesia_bench.costs.work import Writing
from amnesia_bench.errors import StageFailedError
from amnesia_bench.pipeline.bookkeeping import LOG, StageState, read_failure, state_of
from amnesia_bench.pipeline.fork_server import fork_server
from amnesia_bench.pipeline.run import RunOptions, StageCounts, run_graph
from amnesia_bench.pipeline.specs import write_specs
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.pipeline.stage_process import StageLauncher, run_spec
from amnesia_bench.pipeline.worker import run_stage
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.requests.reasoning import ScoreRequest
from amnesia_bench.store.hashing import read_manifest, verify_manifest
from amnesia_bench.store.layout import MANIFEST, stage_path
from amnesia_bench.store.processes import parent_of, process_start
from amnesia_bench.store.scratch import scratch_folder
from tests.support.pipelines import (
    ROOT,
    driver,
    finished,
    processes_of,
    small_command,
    small_driver,
    small_graph,
    starts,
    wait_until,
)


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "store", copy_function=shutil.copy2))


def test_every_stage_is_done_and_proven(made: Path) -> None:
    for stage in small_graph():
        assert state_of(made, stage.kind, stage.id) is StageState.CACHED
        assert verify_manifest(stage.folder(made)) == []
        assert starts(made, stage) == 1
    assert list(made.rglob(".*")) == []


def test_a_second_run_does_nothing(store: Path) -> None:
    before = finished(store)
    outcome = run_graph(store, small_graph())
    assert (outcome.cached, outcome.done) == (3, 0)
    assert finished(store) == before


def test_what_is_missing_alone_is_done(store: Path) -> None:
    last = small_graph()[-1]
    shutil.rmtree(last.folder(store))
    outcome = run_graph(store, small_graph())
    assert (outcome.cached, outcome.done) == (2, 1)
    assert [starts(store, stage) for stage in small_graph()] == [1, 1, 2]


def test_two_drivers_at_once_run_each_stage_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    drivers = [small_driver(store) for _ in range(2)]
    said = [driver.communicate(timeout=120)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert [starts(store, stage) for stage in small_graph()] == [1, 1, 1]


def test_a_killed_driver_is_followed_by_one_that_finishes(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = small_driver(store)
    # Looking without a pause would take a core from the driver.
    wait_until(lambda: bool(finished(store)) or first.poll() is not None, seconds=240)
    assert first.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    before = finished(store)
    outcome = run_graph(store, small_graph())
    assert outcome.cached + outcome.done == 3
    assert finished(store).items() >= before.items()


def test_a_flipped_byte_is_found_and_repaired(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = small_graph()[-1]
    path = next(stage.folder(store).glob("tokens*"))
    contents = bytearray(path.read_bytes())
    contents[7] ^= 1
    path.write_bytes(contents)
    with pytest.raises(StageFailedError, match=rf"{path.name} has other contents") as caught:
        run_graph(store, small_graph())
    assert "--repair" in str(caught.value.hint)
    (small_graph()[0].folder(store) / MANIFEST).write_text('{"kind"')
    outcome = run_graph(store, small_graph(), RunOptions(repair=True))
    assert (outcome.cached, outcome.done) == (1, 2)
    assert verify_manifest(stage.folder(store)) == []


def test_a_stage_refuses_an_input_that_was_damaged_meanwhile(store: Path) -> None:
    tokenizer, *_, last = small_graph()
    shutil.rmtree(last.folder(store))
    path = tokenizer.folder(store) / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    worker = [sys.executable, "-m", "amnesia_bench.pipeline.worker", str(store), last.id]
    done = subprocess.run(worker, capture_output=True, text=True)
    assert done.returncode == 4
    assert "tokenizer.json" in done.stderr
    assert state_of(store, last.kind, last.id) is StageState.FAILED
    failure = read_failure(store, last.id)
    assert failure is not None
    assert "was damaged or edited" in failure.said


def broken() -> Stage:
    return Stage(
        kind="scores",
        name="broken",
        request=ScoreRequest(answers=Path("answers/none")),
        inputs=(),
        work=Writing(bytes=1),
    )


def test_a_failed_stage_is_named_with_its_words_and_the_others_are_done(store: Path) -> None:
    last = small_graph()[-1]
    shutil.rmtree(last.folder(store))
    with pytest.raises(
        StageFailedError, match=r"scores.broken-\w+: amnesia score exited with code 2"
    ) as e:
        run_graph(store, [broken(), *small_graph()])
    assert "answers/none" in e.value.what
    assert str(stage_path(store.resolve(), broken().id) / LOG) in str(e.value.hint)
    assert state_of(store, last.kind, last.id) is StageState.CACHED
    assert state_of(store, "scores", broken().id) is StageState.FAILED
    assert starts(store, broken()) == 2, "a stage that fails is tried once more"


def boxed(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the small graph where a file system is not what one hopes for."""
    command = ["bwrap", "--dev-bind", "/", "/", *options, "--"]
    driver = small_command(tmp_path / "disk" / "store")
    return subprocess.run([*command, *driver], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.bubblewrap
def test_a_store_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    disk = str(tmp_path / "disk")
    done = boxed(tmp_path, "--ro-bind", disk, disk)
    assert done.returncode == 1
    assert "no permission" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.bubblewrap
def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    done = boxed(tmp_path, "--size", str(160 << 10), "--tmpfs", str(tmp_path / "disk"))
    assert done.returncode == 1
    assert "No space left" in done.stderr or "no space left" in done.stderr
    assert "Traceback" not in done.stderr


def unreadable(store: Path) -> StageSpec:
    """A stage whose request cannot be answered: its folder holds no answers."""
    request = ScoreRequest(answers=Path("answers/none"))
    spec = StageSpec(
        id="scores.x-0123456789ab", kind="scores", front_door="score",
        request=request.model_dump(mode="json"), command=("score", "none"), inputs={}, threads=1,
        gpus=0,
    )  # fmt: skip
    write_specs(store, [spec])
    return spec


def test_a_forked_stage_says_what_a_started_one_does(tmp_path: Path) -> None:
    spec = unreadable(tmp_path)
    logs = []
    with scratch_folder() as folder, fork_server(folder) as server:
        for name, socket in (("forked", server), ("started", None)):
            log = tmp_path / name
            assert run_spec(tmp_path, spec, log, (), StageLauncher(server=socket)) == 2
            logs.append(log.read_text())
    assert logs[0] == logs[1]
    assert "amnesia score: " in logs[0]


def fork_server_process() -> Path:
    """The folder in /proc of the fork server that this process started."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # a child has the command line of its parent at first
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if parent_of(int(folder.name)) == os.getpid() and (
                    b"amnesia_bench.pipeline.fork_server" in (folder / "cmdline").read_bytes()
                ):
                    return folder
        time.sleep(0.05)
    raise AssertionError("no fork server")


def test_a_fork_server_outlives_a_worker_and_a_stage_the_server(tmp_path: Path) -> None:
    spec = unreadable(tmp_path)
    with scratch_folder() as folder, fork_server(folder) as server:
        with socket.socket(socket.AF_UNIX) as hasty:
            hasty.connect(server)
        assert run_spec(tmp_path, spec, tmp_path / "log", (), StageLauncher(server=server)) == 2
        os.kill(int(fork_server_process().name), signal.SIGKILL)
        assert run_spec(tmp_path, spec, tmp_path / "log", (), StageLauncher(server=server)) == 2


def test_forked_stages_see_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with scratch_folder() as folder, fork_server(folder):
        # The forked children inherit the environment of the server.
        environment = (fork_server_process() / "environ").read_bytes().split(b"\0")
    assert b"CUDA_VISIBLE_DEVICES=" in environment


def test_a_stage_with_gpus_is_started_and_not_forked(tmp_path: Path) -> None:
    spec = replace(unreadable(tmp_path), gpus=1)
    with scratch_folder() as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "forks"))
        server.listen()
        assert (
            run_spec(
                tmp_path,
                spec,
                tmp_path / "log",
                ("0",),
                StageLauncher(server=str(folder / "forks")),
            )
            == 2
        )
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_stage_that_another_attempt_has_ended_meanwhile_is_done(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = small_graph()[-1]
    aside = last.folder(store).rename(store / "aside")

    def beaten(*_: object) -> int:
        aside.rename(last.folder(store))
        return 2

    monkeypatch.setattr("amnesia_bench.pipeline.worker.run_spec", beaten)
    run_stage(store, last.id, StageLauncher())
    assert state_of(store, last.kind, last.id) is StageState.CACHED
    assert read_failure(store, last.id) is None


def test_workers_have_the_environment_of_the_driver_and_leave_no_files(tmp_path: Path) -> None:
    cwd, home = tmp_path / "cwd", tmp_path / "home"
    for folder in (cwd / "modules", home):
        folder.mkdir(parents=True)
    (cwd / "modules" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "names = ('GOMP_SPINCOUNT', 'GLIBC_TUNABLES')\n"
        "told = [os.environ.get(name, '-') for name in names]\n"
        "open(os.environ['MARKS'], 'a').write(' '.join([*told, *sys.orig_argv]) + '\\n')\n"
    )
    (cwd / "random.py").write_text("raise RuntimeError('not a module of ours')")
    marks, here = tmp_path / "marks", os.environ.get("PYTHONPATH", "")
    paths = ["modules", *(str(Path(path).resolve()) for path in here.split(os.pathsep)), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-P", *small_command(Path("store"))[1:]],
        cwd=cwd,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GOMP_SPINCOUNT": "77",
            "MARKS": str(marks),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert marks.read_text().count("amnesia_bench.pipeline.worker") == 3
    (warm,) = [line for line in marks.read_text().splitlines() if "pipeline.fork_server" in line]
    assert warm.startswith("77 glibc.malloc.")  # what the user says goes before what we do
    assert sorted(path.name for path in cwd.iterdir()) == ["modules", "random.py", "store"]
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("signal_", "code", "words"),
    [
        (signal.SIGTERM, 143, ["amnesia run: terminated"]),
        (signal.SIGINT, 130, ["amnesia run: interrupted"]),
        (signal.SIGKILL, -9, []),
    ],
)
def test_a_signal_to_the_driver_alone_ends_all_it_started(
    signal_: signal.Signals, code: int, words: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    first = driver(store, "experiment=table1", "profile=smoke")
    wait_until(lambda: processes_of(store)["command"] != [])
    assert len(processes_of(store)["driver"]) == 1
    assert first.poll() is None
    os.kill(first.pid, signal_)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == code
    assert said.splitlines()[-1:] == words
    wait_until(lambda: not any(processes_of(store).values()))
    assert list(store.glob("stages/.*.lease")) == []
    assert list(store.glob("stages/*/failure.json")) == []


def test_a_command_without_a_server_ends_when_the_driver_is_killed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = small_driver(store, "--without-server")
    wait_until(lambda: processes_of(store)["command"] != [])
    assert processes_of(store)["server"] == []
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    wait_until(lambda: not any(processes_of(store).values()))
    assert list(store.glob("stages/.*.lease")) == []
    assert list(store.glob("stages/*/failure.json")) == []


def test_a_command_without_a_server_ends_when_its_worker_is_killed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    driver = small_driver(store, "--without-server")
    wait_until(lambda: processes_of(store)["command"] != [])
    (command,), (worker,) = processes_of(store)["command"], processes_of(store)["worker"]
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: process_start(command) in (None, -1))
    said, _ = driver.communicate(timeout=120)
    assert said.splitlines()[-1] == str(StageCounts(cached=0, done=3))
    assert starts(store, small_graph()[0]) >= 2, "the command that was ended, and the next"


def test_a_manifest_names_the_stages_that_were_read(made: Path) -> None:
    tokenizer, *others = small_graph()
    for stage in others:
        order = (made / "stages" / stage.id / "stage.json").read_text()
        assert tokenizer.id in order
        assert read_manifest(stage.folder(made)).provenance.ended is not None
