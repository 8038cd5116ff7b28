"""kill -9 of the driver and all it started at random points: the same command finishes, and the
cells are those of a run that nobody disturbed."""

import json
import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.pipelines import driver, finished

EXPERIMENT = ("experiment=table1", "profile=smoke")
KILLS = 12


def processes_of(store: Path) -> dict[str, list[int]]:
    """Return the pids of the drivers, servers, workers and commands of a store, and of no other."""
    found: dict[str, list[int]] = {"driver": [], "server": [], "worker": [], "command": []}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if f"AMNESIA_STORE={store}" not in words(folder / "environ"):
                continue
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if kind := _kind(words(folder / "cmdline"), words(Path(f"/proc/{parent}/cmdline"))):
                found[kind].append(int(folder.name))
    return found


def words(path: Path) -> list[str]:
    """Return the parts of a file of /proc."""
    return path.read_bytes().decode(errors="replace").split("\0")


def _kind(command: list[str], parent: list[str]) -> str | None:
    if (
        "amnesia_bench.pipeline.fork_server" in command
    ):  # a child of the server has its command line
        return "command" if "amnesia_bench.pipeline.fork_server" in parent else "server"
    if "amnesia_bench.pipeline.worker" in command:
        return "worker"
    if "amnesia_bench.cli.main" in command:
        return "driver" if "run" in command else "command"
    return None


def cells(store: Path) -> dict[str, object]:
    """Return every cell and answer of a store without where and when it was made."""
    found = {}
    for path in sorted(store.glob("recall/*/*/cell.json")) + sorted(
        store.glob("scores/*/*/cells.json")
    ):
        text = re.sub(re.escape(str(store)), "", path.read_text())
        cell = json.loads(text)
        for each in cell if isinstance(cell, list) else [cell]:
            # A hash of the raw answers' file, which holds the seconds they took.
            each["parents"] = [p for p in each["parents"] if p["role"] != "generations"]
        found[str(path.relative_to(store))] = cell
    return found


@pytest.mark.slow
def test_the_cells_of_a_run_that_was_killed_many_times_are_those_of_one_that_was_not(
    tmp_path: Path,
) -> None:
    calm, wild = tmp_path / "calm" / "store", tmp_path / "wild" / "store"
    calm.parent.mkdir()
    wild.parent.mkdir()
    undisturbed = driver(calm, *EXPERIMENT)
    said, _ = undisturbed.communicate(timeout=900)
    assert undisturbed.returncode == 0, said

    rng = random.Random(7)
    kills, before = 0, dict[str, str]()
    running = driver(wild, *EXPERIMENT)
    while True:
        time.sleep(rng.uniform(0.5, 6))
        if running.poll() is not None and kills >= KILLS:
            break
        assert finished(wild).items() >= before.items(), "a stage was done twice"
        before = finished(wild)
        kind = rng.choice(["driver", "server", "worker", "command"])
        for pid in rng.sample(pids := processes_of(wild)[kind], min(1, len(pids))):
            os.kill(pid, signal.SIGKILL)
            kills += 1
        if running.poll() is not None:
            running.communicate()
            running = driver(wild, *EXPERIMENT)
        if len(before) >= len(finished(calm)) and kills < KILLS:
            pytest.fail(f"all was done after {kills} kills: kill faster")
    running.communicate()
    last = driver(wild, *EXPERIMENT)
    said, _ = last.communicate(timeout=900)
    assert last.returncode == 0, said
    assert finished(wild).items() >= before.items(), "a stage was done twice"
    assert cells(wild) == cells(calm)
    assert len(cells(calm)) == 3 * 3 + 3
