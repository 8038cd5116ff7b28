"""A process leaves nothing on its machine, and removes what a killed one left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from amnesia_bench.store.scratch import scratch_folder

HOLD = """
from amnesia_bench.store.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of temporary files that a test has for itself."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def holder(top: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env={**os.environ, "TMPDIR": str(top), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_it_is_private_short_and_gone_afterwards(top: Path) -> None:
    with scratch_folder() as folder:
        assert folder.parent == top
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(folder.name) < 60  # the paths of sockets end at 108
    assert list(top.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_live_one_has_stays(
    top: Path,
) -> None:
    killed, alive = holder(top), holder(top)
    left, held = (Path(child.stdout.readline().strip()) for child in (killed, alive))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert left.is_dir()
    others = ["amnesia-run-x", "amnesia-gpus-0", f"{left.name[:12]}00000000-1-1-x"]
    for name in others:
        (top / name).mkdir()
    with scratch_folder():
        assert not left.exists()
        assert (held / "file").is_file()
    assert {path.name for path in top.iterdir()} == {held.name, *others}
    alive.communicate("\n")


def test_one_that_lasts_is_gone_with_its_process(top: Path) -> None:
    code = "from amnesia_bench.store.scratch import lasting_scratch_folder as new; print(new())"
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(top), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(child.stdout.strip()).parent == top
    assert list(top.iterdir()) == []


def test_a_link_of_that_name_is_not_followed(top: Path) -> None:
    child = holder(top)
    left = Path(child.stdout.readline().strip())
    child.kill()
    child.communicate()
    mine = top / "mine"
    left.rename(mine)
    left.symlink_to(mine)
    with scratch_folder():
        pass
    assert (mine / "file").is_file()
