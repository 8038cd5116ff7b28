"""`amnesia` commands that run a small experiment on a mini SLURM."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from amnesia_bench.store.layout import MANIFEST
from tests.support.mini_slurm import MiniSlurm
from tests.support.pipelines import ROOT

# The softmax model of Table 10 before its fine-tune: two short trainings and its recall.
EXPERIMENT = """\
extends: table10
methods: [pre]
scopes: {tiny: {reasoning: []}}
"""
CLUSTER = """\
extends: slurm
gpus_per_node: 2
cpus_per_node: 2
poll_seconds: 1.0
save_seconds: 60
"""
STAGES = 12  # of EXPERIMENT


class Runs:
    """`amnesia` with a store of its own on a mini SLURM.

    Args:
        slurm: the mini SLURM.
        folder: a folder for the store, the reports and the configs; it is made if need be.
        begun: other runs, whose store is copied; stages that they finished are cache hits.
    """

    def __init__(self, slurm: MiniSlurm, folder: Path, begun: Runs | None = None) -> None:
        self.slurm, self.folder, self.store = slurm, folder, folder / "store"
        folder.mkdir(exist_ok=True)
        if begun is not None:
            shutil.copytree(begun.store, self.store)
        (folder / "mine.yaml").write_text(EXPERIMENT)
        (folder / "mini.yaml").write_text(CLUSTER)

    def start(
        self, *words: str, cluster: str = "mini.yaml", experiment: str = "mine.yaml"
    ) -> subprocess.Popen[str]:
        """Start `amnesia run`; a cluster or an experiment with a suffix is a file of the folder."""
        experiment = f"{self.folder}/{experiment}" if "." in experiment else experiment
        cluster = f"{self.folder}/{cluster}" if "." in cluster else cluster
        overrides = [f"experiment={experiment}", "profile=smoke", f"cluster={cluster}", *words]
        return subprocess.Popen(
            [*_AMNESIA, "run", *overrides, f"--store={self.store}", f"--out={self.folder}/results"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=self.slurm.environment,
        )

    def finish(
        self,
        *words: str,
        code: int = 0,
        cluster: str = "mini.yaml",
        experiment: str = "mine.yaml",
    ) -> str:
        """Run `amnesia run` to its end, check its exit code, and return what it prints."""
        return ended(self.start(*words, cluster=cluster, experiment=experiment), code)

    def amnesia(self, *words: str, code: int = 0) -> str:
        """Run another command on the store, and return what it prints."""
        done = subprocess.run(
            [*_AMNESIA, *words, f"--store={self.store}"],
            env=self.slurm.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def cancel(self, running: subprocess.Popen[str]) -> str:
        """End a driver, then cancel its jobs; return what `amnesia cancel` prints."""
        running.terminate()
        running.communicate(timeout=120)
        return self.amnesia("cancel")

    def manifests(self) -> dict[str, str]:
        """Return the text of the manifest of every finished stage, by its id."""
        paths = self.store.glob(f"[a-z]*/[a-z]*/{MANIFEST}")
        return {path.parent.name: path.read_text() for path in paths}

    def cells(self) -> dict[str, object]:
        """Return what every evaluation measured."""
        found = {}
        for path in self.store.rglob("cell.json"):
            cell = json.loads(path.read_text())
            name = str(path.relative_to(self.store))
            found[name] = (cell["value"], cell["n"], cell["metric"])
        assert found
        return found

    def attempts(self) -> dict[str, int]:
        """Return how often the command of each stage was started."""
        logs = self.store.glob("stages/*/log.txt")
        return {path.parent.name: path.read_text().count("$ amnesia ") for path in logs}

    def number_of(self, stage: str, states: str = "RUNNING") -> str | None:
        """Return the number of a stage's job in one of some states; None if there is none."""
        rows = self.slurm.call("squeue", "-h", "-t", states, "-o", "%i %j").splitlines()
        return next((row.split()[0] for row in rows if row.split()[1].startswith(stage)), None)

    def wait_for(
        self,
        what: Callable[[], object],
        running: subprocess.Popen[str] | None = None,
        seconds: float = 180,
    ) -> None:
        """Wait until something holds, while a driver is running."""
        deadline = time.monotonic() + seconds
        while not what():
            if running is not None and running.poll() is not None:
                raise AssertionError(running.communicate()[0])
            assert time.monotonic() < deadline, self.slurm.call("squeue")
            time.sleep(0.3)


def ended(running: subprocess.Popen[str], code: int) -> str:
    """Wait for a driver, check its exit code, and return what it printed."""
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == code, printed
    return printed


_AMNESIA = (sys.executable, "-m", "amnesia_bench.cli.main")
