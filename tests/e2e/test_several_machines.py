"""Several machines on one shared folder without a scheduler: one driver each, leases decide.

Each machine has a host name and processes of its own, so that none can ask whether a process of
another one is alive. They share one local file system, and one clock unless a library makes the
clock of a machine wrong.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.lease import STALE_SECONDS
from tests.support.compiled import compiled
from tests.support.pipelines import ROOT, finished, small_command, small_graph, starts, wait_until

_MACHINE = ("unshare", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
TOKENIZER, *DATA = small_graph()


@pytest.fixture(autouse=True)
def machines() -> None:
    if subprocess.run([*_MACHINE, "hostname", "a"], capture_output=True).returncode:
        pytest.skip("this user may not start processes under another host name (unshare)")


@contextmanager
def machine(name: str, store: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Run the small graph on a machine; what still runs there after the block is killed."""
    command = ["sh", "-c", f'hostname {name} && exec "$@"', "sh"]
    running = subprocess.Popen(
        [*_MACHINE, *command, *small_command(store, "--without-server")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "AMNESIA_DEBUG": "", "AMNESIA_STORE": str(store), **variables},
    )
    with running:
        try:
            yield running
        finally:
            running.kill()


def counts(running: subprocess.Popen[str]) -> dict[str, int]:
    """Wait for a driver, and return the numbers of stages that it prints."""
    printed, _ = running.communicate(timeout=900)
    assert running.returncode == 0, printed
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", printed)}


@pytest.mark.slow
def test_machines_that_share_a_store_run_each_stage_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with ExitStack() as stack:
        running = [stack.enter_context(machine(name, store)) for name in ("one", "two")]
        done = [counts(driver) for driver in running]
    assert sum(count["done"] for count in done) == 3
    assert all(sum(count.values()) == 3 for count in done)
    assert [starts(store, stage) for stage in (TOKENIZER, *DATA)] == [1, 1, 1]


@pytest.fixture(scope="module")
def wrong_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes the clock of a process wrong."""
    return compiled("skewed_clock", tmp_path_factory.mktemp("clock"))


@pytest.mark.slow
@pytest.mark.parametrize("times", ["of the file server", "of the clients"])
@pytest.mark.parametrize("skews", [(0, -420), (-7200, 7200)])
def test_machines_whose_clocks_differ_run_each_stage_once(
    times: str, skews: tuple[int, int], wrong_clock: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    variables = {"LD_PRELOAD": str(wrong_clock)}
    if times == "of the clients":
        variables["CLIENT_TIMES"] = "1"
    with ExitStack() as stack:
        running = [
            stack.enter_context(machine(f"m{i}", store, SKEW_SECONDS=str(skew), **variables))
            for i, skew in enumerate(skews)
        ]
        done = [counts(driver) for driver in running]
    assert sum(count["done"] for count in done) == 3
    assert [starts(store, stage) for stage in (TOKENIZER, *DATA)] == [1, 1, 1]


def test_the_clock_of_a_machine_is_wrong(wrong_clock: Path, tmp_path: Path) -> None:
    """The library does what the test above needs."""
    code = "import os, sys, time; f = open(sys.argv[1], 'w'); f.write('x'); f.close()"
    code += "; os.utime(sys.argv[1]); print(time.time() - os.stat(sys.argv[1]).st_mtime)"
    for variables, expected in (({}, -7200), ({"CLIENT_TIMES": "1"}, 0)):
        environment = {"LD_PRELOAD": str(wrong_clock), "SKEW_SECONDS": "-7200", **variables}
        command = [sys.executable, "-S", "-c", code, tmp_path / "file"]
        printed = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
        assert abs(float(printed) - expected) < 60


@pytest.mark.slow  # a heartbeat is watched for 45 seconds
def test_a_machine_takes_over_the_stage_of_one_that_died(tmp_path: Path) -> None:
    store = tmp_path / "store"
    folder = stage_path(store, TOKENIZER.id)
    with ExitStack() as stack:
        dying = stack.enter_context(machine("dying", store))
        wait_until(lambda: (folder / "log.txt").is_file())
        living = stack.enter_context(machine("living", store))
        dying.kill()  # with all its processes, like a power failure
        dying.communicate()
        time.sleep(1)
        assert living.poll() is None
        assert not finished(store)  # the lease of the dead machine has not expired
        _let_leases_expire(store, "dying")
        assert counts(living) == {"cached": 0, "done": 3, "by_others": 0}
    assert [starts(store, stage) for stage in (TOKENIZER, *DATA)] == [2, 1, 1]


def _let_leases_expire(store: Path, host: str) -> None:
    """Date a machine's heartbeats back, as if it had been dead for five minutes."""
    for claim in store.glob("*/.*.lease/[0-9]*"):
        with suppress(FileNotFoundError):  # released meanwhile
            if json.loads(claim.read_text())["host"] == host:
                then = claim.stat().st_mtime - STALE_SECONDS - 1
                os.utime(claim, (then, then))
