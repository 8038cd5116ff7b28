"""A store that belongs to another user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pipelines import ROOT

# Another user may not be able to read Python itself, so modules are imported before.
_AS_NOBODY = """\
import os, sys
from amnesia_bench.cli import status
from amnesia_bench.cli.main import main
main(["run", "experiment=table10", "profile=smoke", "cluster=slurm", "--dry-run", "--store=/x"])
if os.getuid() == 0:
    os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder with a store of this user; if that is root, other users may read it."""
    # Not pytest's own folder: another user may not even look into that.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "results").mkdir()
    (folder / "results").chmod(0o777)
    (folder / "store").mkdir()
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("locked", ["store", "store/stages", "store/tokenizer"])
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_store_of_another_user_is_named_before_anything_starts(
    cluster: str, locked: str, shared: Path
) -> None:
    store = shared / "store"
    (shared / locked).mkdir(exist_ok=True)
    if locked != "store":  # the owner shares the other folders
        store.chmod(0o777)
    if os.getuid() != 0:  # permissions do not bind root, but bind another user
        (shared / locked).chmod(0o555)
    words = ["run", "experiment=table10", "profile=smoke", f"cluster={cluster}"]
    words += [f"--store={store}", f"--out={shared}/results"]
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, *words],
        # Without SLURM: it would be asked only later.
        env={"PATH": "/nowhere", "HOME": str(shared), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 6, done.stderr
    assert f"{shared / locked}: no permission to write, so no stage was started" in done.stderr
    assert f"belongs to {(shared / locked).owner()}" in done.stderr
    assert "Use a store of your own: --store or $AMNESIA_STORE." in done.stderr
    assert not [path for path in store.rglob("*") if path.is_file()]


def test_a_store_that_this_user_may_not_even_read_is_named(shared: Path) -> None:
    (shared / "store" / "tokenizer").mkdir()
    (shared / "store").chmod(0o700 if os.getuid() == 0 else 0o000)
    store = shared / "store" / "of" / "another"
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, "status", f"--store={store}"],
        env={"PATH": "/nowhere", "HOME": str(shared), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 6, done.stderr
    assert f"{store}: no permission to read the store" in done.stderr
