"""Example files for other programs, which these tests do not need."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from amnesia_bench.config.experiment_schema import load_jobs

ROOT = Path(__file__).resolve().parents[2]

# Fields of a task and of its resources in SkyPilot 0.14 (sky/utils/schemas.py) that we use, and the
# types that it accepts. SkyPilot refuses unknown fields.
_TASK = {
    "name": str,
    "workdir": str,
    "resources": dict,
    "envs": dict,
    "setup": str,
    "run": str,
}
_RESOURCES = {
    "accelerators": str,
    "cpus": str,
    "memory": str,
    "disk_size": int,
    "use_spot": bool,
    "autostop": dict,
}


def test_the_skypilot_task_has_skypilots_fields() -> None:
    task = yaml.safe_load((ROOT / "docs/examples/skypilot.yaml").read_text())
    assert {name: type(value) for name, value in task.items()} == _TASK
    resources = task["resources"]
    assert {name: type(value) for name, value in resources.items()} == _RESOURCES
    assert re.fullmatch(r"[A-Z0-9]+:8", resources["accelerators"])
    assert set(resources["autostop"]) == {"idle_minutes"}
    assert all(re.fullmatch("[A-Z_]+", name) for name in task["envs"])


def test_the_skypilot_task_runs_an_experiment_on_all_gpus_of_its_machine(tmp_path: Path) -> None:
    """Run its last script with a stand-in for `amnesia` that prints its words."""
    task = yaml.safe_load((ROOT / "docs/examples/skypilot.yaml").read_text())
    command = tmp_path / "amnesia" / "bin" / "amnesia"
    command.parent.mkdir(parents=True)
    command.write_text('#!/bin/sh\necho "$AMNESIA_STORE"\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    environment = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }
    printed = subprocess.run(
        ["bash", "-eu", "-c", task["run"]],
        env={**environment, **task["envs"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    store, word, *overrides = printed
    assert (store, word) == (f"{tmp_path}/amnesia-store", "run")
    (job,) = load_jobs(overrides)
    assert (job.config.experiment.name, job.config.profile.gpus) == ("table1", 8)
    assert job.config.profile.name == "paper"
    subprocess.run(["bash", "-n"], input=task["setup"], text=True, check=True)
    assert (ROOT / "constraints" / "gpu.txt").is_file()
    assert "constraints/gpu.txt" in task["setup"]
