"""Disks that are full, and quotas that are used up, while stages are written.

A small file system of memory is full for real; a library reports that as an exhausted quota.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.compiled import compiled
from tests.support.pipelines import ROOT, small_command

# Runs a command on the small disk, looks at the store, enlarges the disk, and runs it again.
_SCRIPT = """\
import json, subprocess, sys
from pathlib import Path
from amnesia_bench.store.hashing import verify_manifest
disk, library, *command = sys.argv[1:]
def run():
    command_here = ["env", f"LD_PRELOAD={library}", *command]
    done = subprocess.run(command_here, capture_output=True, text=True)
    made = [path.parent for path in Path(disk).glob("store/*/*-*/manifest.json")]
    damaged = [str(folder) for folder in made if verify_manifest(folder)]
    return {"code": done.returncode, "out": done.stdout, "error": done.stderr,
            "made": sorted(folder.name for folder in made), "damaged": damaged}
full = run()
subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
print(json.dumps([full, run()]))
"""
_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def on_small_disk(disk: Path, kilobytes: int, library: Path | None) -> list[dict[str, Any]]:
    """Run the small graph on a disk that is too small, and again once it is large."""
    disk.mkdir()
    if shutil.which("unshare") is None or subprocess.run([*_NAMESPACE, "true"]).returncode:
        pytest.skip("this user may not mount a file system (unshare)")
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs "{disk}" && exec "$@"'
    script = [sys.executable, "-c", _SCRIPT, disk, library or ""]
    done = subprocess.run(
        [*_NAMESPACE, "sh", "-c", mount, "sh", *script, *small_command(disk / "store")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "AMNESIA_DEBUG": ""},
    )
    assert done.returncode == 0, done.stderr
    result: list[dict[str, Any]] = json.loads(done.stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [100, 220])
@pytest.mark.parametrize("cause", ["full disk", "quota"])
def test_nothing_half_written_counts_as_done_and_a_larger_disk_is_enough(
    cause: str, kilobytes: int, tmp_path: Path
) -> None:
    library = compiled("quota", tmp_path) if cause == "quota" else None
    disk = tmp_path / "disk"
    full, enough = on_small_disk(disk, kilobytes, library)
    assert full["code"] == 1, "the disk was large enough"
    assert "Traceback" not in full["error"]
    assert "no space left while writing" in full["error"]
    if cause == "quota":
        assert "Disk quota exceeded" in full["error"]
        assert f"the file system {disk}, whose quota is used up (`quota -s`" in full["error"]
    else:
        assert "No space left on device" in full["error"]
        assert f"Free space on the file system {disk} (`df -h {disk}`" in full["error"]
    assert len(full["made"]) < 3
    assert full["damaged"] == []
    assert enough["code"] == 0, enough["error"]
    assert len(enough["made"]) == 3
    assert set(enough["made"]) >= set(full["made"])
    assert enough["damaged"] == []
