"""kill -9, a full disk, a rival: nothing that looks finished is left, and a second run succeeds."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.checkpoints import drifted, random_model, save, tensor_bytes
from tests.support.surgery import restore, verify

# Runs a restore in which the Nth call of one function kills its own process, as kill -9 would.
CHILD = """
import os, signal, sys
from pathlib import Path
import amnesia_bench as ab
from amnesia_bench.requests.checkpoints import RestoreRequest
from amnesia_bench.surgery import edits, shards
from amnesia_bench.surgery import restoration as restoring
import amnesia_bench.store.publish as publish

module, name, countdown = {"copy": (shards, "_write"), "hash": (restoring, "sha256_of"),
    "spool": (edits, "_edited_tensor"), "manifest": (publish, "write_json"),
    "sync": (publish, "sync_folder")}[sys.argv[1]] + (int(sys.argv[2]),)
honest = getattr(module, name)

def deadly(*args, **kwargs):
    global countdown
    countdown -= 1
    if countdown < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(*args, **kwargs)

setattr(module, name, deadly)
pre, post, out = map(Path, sys.argv[3:])
ab.restore(RestoreRequest(pre=pre, post=post, variant=ab.load_variant("qk")), out)
"""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    model = random_model(0)
    pre = save(tmp_path / "pre", model, shards=2)
    return pre, save(tmp_path / "post", drifted(model, 1), shards=3), tmp_path / "out"


@pytest.mark.parametrize(
    ("where", "call"),
    [("spool", 0), ("spool", 4), ("copy", 0), ("copy", 2), ("hash", 0), ("hash", 3),
     ("manifest", 0), ("sync", 0)],
)  # fmt: skip
def test_killed_half_way_leaves_nothing_finished_and_can_be_repeated(
    where: str, call: int, folders: tuple[Path, Path, Path]
) -> None:
    pre, post, out = folders
    command = [sys.executable, "-c", CHILD, where, str(call), *map(str, folders)]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    visible = {path.name for path in out.parent.iterdir() if not path.name.startswith(".")}
    assert visible == {"pre", "post"}
    restore(pre, post, out)
    assert not verify(out).findings
    assert {path.name for path in out.parent.iterdir()} == {"pre", "post", "out"}


def test_a_full_disk_half_way_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    model = random_model(0)
    model["model.embed_tokens.weight"] = np.zeros((100_000, 16))
    pre = save(tmp_path / "pre", model)
    post = save(tmp_path / "post", drifted(model, 1))
    done = subprocess.run(
        [sys.executable, "-m", "amnesia_bench.cli.main", "restore",
         "--pre", str(pre), "--post", str(post), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )  # fmt: skip
    assert done.returncode == 4
    assert "no space" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"pre", "post"}
    restore(pre, post, tmp_path / "out")


def test_the_space_that_is_missing_is_told_before_anything_is_copied(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from amnesia_bench.errors import StageFailedError

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StageFailedError, match="bytes are needed and 1 are free"):
        restore(*folders)
    assert not folders[2].exists()


def test_a_second_restore_to_the_same_place_is_busy(folders: tuple[Path, Path, Path]) -> None:
    pre, post, out = folders
    slow = CHILD.replace("os.kill(os.getpid(), signal.SIGKILL)", "import time; time.sleep(60)")
    first = subprocess.Popen([sys.executable, "-c", slow, "manifest", "0", *map(str, folders)])
    try:
        deadline = time.monotonic() + 30
        while not list(out.parent.glob(".out.tmp-*/restoration.json")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = subprocess.run(
            [sys.executable, "-m", "amnesia_bench.cli.main", "restore",
             "--pre", str(pre), "--post", str(post), "--out", str(out)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert second.returncode == 5
        assert str(first.pid) in second.stderr
    finally:
        first.kill()
        first.wait()
    restore(pre, post, out)
    assert tensor_bytes(out).keys() == tensor_bytes(post).keys()
