"""kill -9 of the driver and all it started at random points, with evaluations in parts: the same
command finishes, and the cells are those of a run that nobody disturbed, without parts."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from tests.support.pipelines import driver, finished, processes_of

EXPERIMENT = ("experiment=table1", "profile=smoke")
PARTS = "profile.max_hours_per_evaluation=1e-9"  # a part for each prompt and each problem
KILLS = 12


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
    running = driver(wild, *EXPERIMENT, PARTS)
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
            running = driver(wild, *EXPERIMENT, PARTS)
        if len(before) >= len(finished(calm)) and kills < KILLS:
            pytest.fail(f"all was done after {kills} kills: kill faster")
    running.communicate()
    last = driver(wild, *EXPERIMENT, PARTS)
    said, _ = last.communicate(timeout=900)
    assert last.returncode == 0, said
    assert finished(wild).items() >= before.items(), "a stage was done twice"
    assert cells(wild) == cells(calm)
    assert len(cells(calm)) == 3 * 3 + 3
