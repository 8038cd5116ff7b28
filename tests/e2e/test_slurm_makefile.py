"""The targets of the Makefile that reproduce the paper, on SLURM."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.config.cluster_schema import SlurmCluster
from amnesia_bench.pipeline.experiments import cluster_of, graphs_of
from amnesia_bench.pipeline.graph import stages_of
from tests.support.mini_slurm import mini_slurm
from tests.support.pipelines import ROOT
from tests.support.slurm_runs import Runs

_TABLES = ("table1", "table2", "table3", "table4", "table10")


def _make(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `make` with the Python of the tests instead of the one that `make setup` installs."""
    command = ["make", "--directory", str(ROOT), "--no-print-directory", "--old-file=setup"]
    return subprocess.run(
        [*command, f"BIN={Path(sys.executable).parent}", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("target", [*(f"reproduce-{table}" for table in _TABLES), "figures"])
def test_every_target_has_a_batch_script_for_each_stage_of_the_paper(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = _make("--dry-run", target, "CLUSTER=slurm", f"STORE={tmp_path}", check=True)
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[0] == f"AMNESIA_STORE={tmp_path}"
    monkeypatch.setenv("AMNESIA_STORE", str(tmp_path))
    assert main([*words[2:], "--dry-run"]) == 0
    scripts = capsys.readouterr().out
    graphs = graphs_of([word for word in words[3:] if "=" in word])
    cluster = cluster_of(graphs)
    assert isinstance(cluster, SlurmCluster)
    stages = stages_of(graphs)
    assert scripts.count("#!/bin/bash\n") == len(stages)
    for stage in stages:
        assert f"\n#SBATCH --job-name={stage.id}\n" in scripts
    most = max(stage.gpus for stage in stages)
    assert f"\n#SBATCH --gpus-per-node={min(most, cluster.gpus_per_node)}\n" in scripts
    checked = subprocess.run(["bash", "-n"], input=scripts, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_reproduce_tiny_gives_the_cells_of_a_local_run(tmp_path: Path) -> None:
    """All experiments of the paper at smoke scale."""
    words = ["reproduce-tiny", "SMOKE=1"]
    with mini_slurm(tmp_path / "mini") as slurm:
        on_slurm, local = (Runs(slurm, tmp_path / name) for name in ("slurm", "local"))
        for runs, cluster in ((on_slurm, [f"CLUSTER={tmp_path}/slurm/mini.yaml"]), (local, [])):
            places = [f"STORE={runs.store}", f"RESULTS={runs.folder}/results"]
            done = _make(*words, *places, *cluster, env=slurm.environment)
            assert done.returncode == 0, done.stdout
    assert set(on_slurm.attempts().values()) == {1}
    assert on_slurm.manifests().keys() == local.manifests().keys()
    assert on_slurm.cells() == local.cells()
    reports = [sorted(runs.folder.glob("results/smoke/*")) for runs in (on_slurm, local)]
    assert "report.html" in [path.name for path in reports[0]]
    assert [path.name for path in reports[0]] == [path.name for path in reports[1]]
    for mine, other in zip(*reports, strict=True):
        if mine.suffix == ".csv":
            assert _rows(mine) == _rows(other), mine.name
        if mine.suffix == ".svg":  # the other files say by which command they were made
            assert mine.read_bytes() == other.read_bytes(), mine.name


def _rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table without what differs between two runs: times enter the hash."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in row if name != "manifest_sha256"} for row in rows]
