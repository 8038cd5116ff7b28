"""Leases against real processes: races, deaths and recycled pids."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import BusyError, StageFailedError, UserError
from amnesia_bench.records import codec
from amnesia_bench.store import heartbeats, lease, processes
from amnesia_bench.store.layout import lease_path
from amnesia_bench.store.lease import current_holder, holding_lease
from amnesia_bench.store.processes import Holder

HERE = processes.this_process()
ELSEWHERE = replace(HERE, host="elsewhere")


def claim(final: Path, holder: Holder, *, number: int = 1, age_seconds: float = 0) -> Path:
    """Write a claim as another process would have."""
    folder = lease_path(final)
    folder.mkdir(exist_ok=True)
    path = folder / str(number)
    path.write_text(json.dumps(codec.to_json(holder)))
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(heartbeats, "_WATCH_SECONDS", 0.3)
    monkeypatch.setattr(heartbeats, "_WATCH_PAUSE_SECONDS", 0.01)
    return tmp_path / "out"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[str]]:
    child = start("input()")
    yield child
    child.kill()
    child.communicate()


def of(child: subprocess.Popen[str]) -> Holder:
    return replace(HERE, pid=child.pid, process_start=processes.process_start(child.pid))


def test_a_lease_leaves_nothing_behind(final: Path) -> None:
    with holding_lease(final) as held:
        held.check()
        assert lease_path(final).is_dir()
    assert list(final.parent.iterdir()) == []
    with holding_lease(final):
        pass


def test_the_second_taker_learns_who_holds_it(final: Path, sleeper: subprocess.Popen[str]) -> None:
    claim(final, replace(of(sleeper), host=HERE.host, slurm_job_id="77", since="yesterday"))
    with pytest.raises(BusyError) as caught, holding_lease(final):
        pytest.fail("taken from a live process")
    for part in (f"process {sleeper.pid} on {HERE.host}", "SLURM job 77", "since yesterday"):
        assert part in caught.value.what
    assert str(lease_path(final)) in str(caught.value.hint)
    assert (lease_path(final) / "1").is_file()


def test_one_process_does_not_take_it_twice(final: Path) -> None:
    with holding_lease(final), pytest.raises(BusyError), holding_lease(final):
        pytest.fail("taken twice")


def test_a_live_process_keeps_it_however_old_its_heartbeat(
    final: Path, sleeper: subprocess.Popen[str]
) -> None:
    claim(final, of(sleeper), age_seconds=1e6)
    with pytest.raises(BusyError), holding_lease(final):
        pytest.fail("taken from a live process")


def test_a_killed_process_loses_it_at_once(final: Path, sleeper: subprocess.Popen[str]) -> None:
    claim(final, of(sleeper))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    # Still a zombie here: its pid exists, and it will never write again.
    with holding_lease(final) as held:
        assert held.number == 2
        sleeper.communicate()
    assert list(final.parent.iterdir()) == []


def test_a_reaped_process_loses_it_at_once(final: Path, sleeper: subprocess.Popen[str]) -> None:
    claim(final, of(sleeper))
    sleeper.kill()
    sleeper.communicate()
    with holding_lease(final) as held:
        assert held.number == 2


def test_a_recycled_pid_is_not_taken_for_the_holder(
    final: Path, sleeper: subprocess.Popen[str]
) -> None:
    start_of_another = (of(sleeper).process_start or 0) - 1
    claim(final, replace(of(sleeper), process_start=start_of_another))
    with holding_lease(final) as held:
        assert held.number == 2


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"machine": "another boot"}])
def test_another_host_loses_it_by_the_age_of_its_heartbeat(
    final: Path, other: dict[str, str]
) -> None:
    # The pid is alive here, and means nothing there.
    claim(final, replace(HERE, **other), age_seconds=50)
    with pytest.raises(BusyError), holding_lease(final, stale_seconds=60):
        pytest.fail("taken from a live process")
    claim(final, replace(HERE, **other), age_seconds=70)
    with holding_lease(final, stale_seconds=60) as held:
        assert held.number == 2


@pytest.mark.parametrize(
    ("state", "age_seconds", "taken"),
    [
        ("CANCELLED", 60, True),
        ("PENDING", 60, True),  # it was requeued
        ("RUNNING", 60, False),
        ("COMPLETING", 60, False),
        ("", 60, False),  # SLURM does not know the job, which may belong to another cluster
        ("CANCELLED", 20, False),  # a heartbeat is not missing yet
    ],
)
def test_slurm_is_asked_about_the_job_of_a_silent_process(
    final: Path, monkeypatch: pytest.MonkeyPatch, state: str, age_seconds: float, taken: bool
) -> None:
    (final.parent / "squeue").write_text(f"#!/bin/sh\n[ $3 = --jobs=17 ] && echo '{state}'\n")
    (final.parent / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{final.parent}:/usr/bin:/bin")
    processes._state_of_job.cache_clear()
    claim(final, replace(ELSEWHERE, slurm_job_id="17"), age_seconds=age_seconds)
    outcome = contextlib.nullcontext() if taken else pytest.raises(BusyError)
    with outcome, holding_lease(final) as held:
        assert held.number == 2


def test_a_requeued_job_takes_over_from_its_own_earlier_run(
    final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(final.parent))  # no squeue
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    claim(final, replace(ELSEWHERE, slurm_job_id="17"), age_seconds=60)
    with pytest.raises(BusyError), holding_lease(final):
        pytest.fail("taken from another node of the same run")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with holding_lease(final) as held:
        assert held.number == 2


@pytest.mark.parametrize("skew_seconds", [310, 1e6, -1e6])
def test_ages_are_by_the_clock_of_the_file_system_and_not_by_ours(
    final: Path, skew_seconds: float
) -> None:
    def clock() -> float:
        return time.time() + skew_seconds

    claim(final, ELSEWHERE, age_seconds=10)
    with pytest.raises(BusyError), holding_lease(final, clock=clock):
        pytest.fail("taken since our own clock is ahead")
    claim(final, ELSEWHERE, age_seconds=310)
    with holding_lease(final, clock=clock) as held:
        assert held.number == 2
    assert list(final.parent.iterdir()) == []


def test_a_live_process_whose_clock_is_behind_keeps_it(final: Path) -> None:
    path = claim(final, ELSEWHERE, age_seconds=7200)
    beat = path.stat().st_mtime

    def renew() -> None:
        time.sleep(0.05)
        os.utime(path, (beat + 15, beat + 15))

    living = threading.Thread(target=renew)
    living.start()
    with pytest.raises(BusyError, match="by a clock that is behind ours"), holding_lease(final):
        pytest.fail("taken from a live process")
    living.join()
    assert sorted(entry.name for entry in lease_path(final).iterdir()) == ["1"]
    with holding_lease(final) as held:  # it is not renewed any more
        assert held.number == 2


def test_a_lease_that_is_released_while_it_is_watched_is_taken(final: Path) -> None:
    claim(final, ELSEWHERE, age_seconds=7200)
    releasing = threading.Timer(0.05, lambda: shutil.rmtree(lease_path(final)))
    releasing.start()
    with holding_lease(final) as held:
        assert held.number == 1
    releasing.join()


def test_a_process_that_cannot_be_is_dead(final: Path) -> None:
    claim(final, replace(HERE, pid=10**30))
    with holding_lease(final) as held:
        assert held.number == 2


def test_a_heartbeat_of_no_year_is_said_too(final: Path) -> None:
    path = claim(final, ELSEWHERE)
    try:
        os.utime(path, (1e12, 1e12))
    except OSError:
        pytest.skip("this file system knows no such time")
    with pytest.raises(BusyError, match="ahead of the clock"):
        holding_lease(final).__enter__()


def test_where_the_clock_of_the_file_system_cannot_be_read_ours_is_asked(
    final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(final, ELSEWHERE, age_seconds=310)
    real = os.open

    def read_only(path: Any, flags: int, *arguments: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", read_only)
    assert current_holder(final) is None
    assert current_holder(final, stale_seconds=400) == ELSEWHERE


def test_a_heartbeat_of_the_future_is_said_and_becomes_an_age(
    final: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = claim(final, ELSEWHERE, age_seconds=-86400)
    with pytest.raises(BusyError, match=r"86\d{3} s ahead of the clock") as caught:
        holding_lease(final).__enter__()
    assert "its lease expires in 300 s" in caught.value.what
    assert f"The last heartbeat of process {HERE.pid} on elsewhere is 86" in caplog.text
    # A dead holder does not renew it, and so it ages from now on.
    assert abs(path.stat().st_mtime - time.time()) < 60
    os.utime(path, (time.time() - 310,) * 2)
    with holding_lease(final) as held:
        assert held.number == 2


def spoil(folder: Path, kind: str, name: str) -> None:
    """Put what is no claim into a lease folder."""
    match kind:
        case "file":
            (folder / name).touch()
        case "folder":
            (folder / name).mkdir()
        case "link":
            (folder / name).symlink_to("nowhere")
        case _:
            os.mkfifo(folder / name)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("file", ["٣", "007", "0", "-3", "1e5", "+4", " 5", "²", "9" * 200]),
        ("folder", ["7"]),
        ("link", ["7"]),
        ("pipe", ["7"]),
    ],
)
@pytest.mark.parametrize("holder", ["nobody", "dead", "alive"])
def test_what_is_no_claim_hurts_nobody(
    final: Path, kind: str, names: list[str], holder: str, sleeper: subprocess.Popen[str]
) -> None:
    lease_path(final).mkdir()
    if holder != "nobody":
        claim(final, of(sleeper) if holder == "alive" else replace(HERE, process_start=1))
    for name in names:
        spoil(lease_path(final), kind, name)
    if holder == "alive":
        with pytest.raises(BusyError, match=f"process {sleeper.pid}"):
            holding_lease(final).__enter__()
        return
    with holding_lease(final) as held:
        held.check()
        with pytest.raises(BusyError), holding_lease(final):
            pytest.fail("taken twice")
    assert list(final.parent.iterdir()) == []


def test_a_lease_that_is_always_lost_to_others_ends_in_a_message(
    final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_try_to_take", lambda *_: None)
    monkeypatch.setattr(lease, "_PAUSE_SECONDS", 0)
    with pytest.raises(BusyError, match="took its lease 1000 times"), holding_lease(final):
        pass


@pytest.mark.parametrize(
    "data", [b"", b'{"host":', b"\xff", b"{}", b"[" * 100_000, b" " * 100_000 + b"{}", b"9" * 5000]
)
def test_a_claim_without_a_name_is_busy_for_a_moment_and_then_dead(
    final: Path, data: bytes
) -> None:
    path = claim(final, HERE)
    path.write_bytes(data)
    with pytest.raises(BusyError, match="has not written its claim yet"), holding_lease(final):
        pytest.fail("taken from a process that is about to write")
    os.utime(path, (1, 1))
    with holding_lease(final):
        pass


def test_the_heartbeat_is_renewed_while_held(final: Path) -> None:
    with holding_lease(final, heartbeat_seconds=0.02):
        path = lease_path(final) / "1"
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < time.time() - 60:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.02)


def test_whoever_was_overtaken_notices_and_removes_nothing(final: Path) -> None:
    with holding_lease(final) as held:
        path = claim(final, replace(HERE, host="elsewhere"), number=2)
        with pytest.raises(StageFailedError, match="another process took over"):
            held.check()
    assert path.is_file()


def test_a_lease_deleted_by_hand_is_lost(final: Path) -> None:
    with holding_lease(final) as held:
        lease_path(final).rename(final.with_name("moved"))
        with pytest.raises(StageFailedError):
            held.check()
        lease_path(final).mkdir()
        with pytest.raises(StageFailedError):
            held.check()


def test_a_claim_on_a_lease_that_was_just_released_does_not_count(
    final: Path, sleeper: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(final, replace(HERE, process_start=1))
    write = lease._write_claim

    def release_and_retake_first(descriptor: int, number: int) -> None:
        lease_path(final).rename(final.with_name("released"))
        claim(final, of(sleeper))
        write(descriptor, number)

    monkeypatch.setattr(lease, "_write_claim", release_and_retake_first)
    with pytest.raises(BusyError, match=f"process {sleeper.pid}"), holding_lease(final):
        pytest.fail("taken from a live process")
    assert [path.name for path in lease_path(final).iterdir()] == ["1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["_last_claim", "_write_claim", "new_working_path", "Lease"])
def test_a_signal_while_it_is_taken_or_given_back_leaves_nothing_behind(
    where: str, number: signal.Signals, final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    def end(number: int, frame: object) -> None:
        raise Ended

    def signalled(*arguments: Any) -> Any:
        signal.raise_signal(number)
        return real(*arguments)

    real = getattr(lease, where)
    monkeypatch.setattr(lease, where, signalled)
    before = signal.signal(number, end)
    try:
        with pytest.raises(Ended), holding_lease(final):
            assert where == "new_working_path"  # the others end before anything is done
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)
    assert list(final.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_in_the_way_is_named(final: Path, kind: str) -> None:
    if kind == "file":
        lease_path(final).touch()
    else:
        lease_path(final).symlink_to("nowhere")
    with pytest.raises(UserError, match="in the way"), holding_lease(final):
        pass


TAKE_ALL = """
import contextlib, sys
from pathlib import Path
from amnesia_bench.errors import BusyError
from amnesia_bench.store.lease import holding_lease
print("ready", flush=True)
input()
with contextlib.ExitStack() as held:
    won = []
    for final in sys.argv[1:]:
        try:
            held.enter_context(holding_lease(Path(final)))
        except BusyError:
            continue
        won.append(final)
    print(*won, flush=True)
    input()
"""


@pytest.mark.parametrize("left_by_the_dead", [False, True], ids=["free", "stale"])
def test_of_eight_processes_exactly_one_wins_each_lease(
    tmp_path: Path, left_by_the_dead: bool
) -> None:
    finals = [tmp_path / f"out{i}" for i in range(40)]
    if left_by_the_dead:
        for final in finals:
            claim(final, replace(HERE, process_start=1))
    children = [start(TAKE_ALL, *finals) for _ in range(8)]
    try:
        for child in children:
            assert child.stdout.readline() == "ready\n"
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
        won = [name for child in children for name in child.stdout.readline().split()]
        assert sorted(won) == sorted(map(str, finals))
    finally:
        for child in children:
            with contextlib.suppress(BrokenPipeError):
                child.communicate("\n", timeout=30)
    assert [child.returncode for child in children] == [0] * 8
    assert list(tmp_path.iterdir()) == []


CHURN = """
import os, sys, time
from pathlib import Path
from amnesia_bench.errors import BusyError
from amnesia_bench.store.lease import holding_lease
final, inside = Path(sys.argv[1]), Path(sys.argv[2])
done, deadline = 0, time.monotonic() + 30
while done < 200 and time.monotonic() < deadline:
    try:
        with holding_lease(final):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            inside.unlink()
        done += 1
    except BusyError:
        time.sleep(0.001)
print(done)
"""


def test_no_two_processes_are_ever_inside_together(final: Path) -> None:
    children = [start(CHURN, final, final.with_name("inside")) for _ in range(4)]
    done = [child.communicate(timeout=60)[0] for child in children]
    assert done == ["200\n"] * 4
    assert list(final.parent.iterdir()) == []
