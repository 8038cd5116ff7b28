"""The configs inside a wheel, and a config of one's own beside an installed package."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of what is committed, beside a private file, made by way of the sdist."""
    pytest.importorskip("hatchling", reason="hatchling is needed to build a wheel")
    tmp_path = tmp_path_factory.mktemp("wheel")
    clone = tmp_path / "clone"
    for name in committed():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    (clone / "configs" / "local").mkdir()
    (clone / "configs" / "local" / "me.yaml").write_text("token: private")

    # As releases are made.
    hatchling = [sys.executable, "-m", "hatchling", "build", "-d", tmp_path / "dist", "-t"]
    subprocess.run([*hatchling, "sdist"], cwd=clone, check=True, capture_output=True)
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    (source,) = (tmp_path / "sdist").iterdir()
    subprocess.run([*hatchling, "wheel"], cwd=source, check=True, capture_output=True)
    (built,) = (tmp_path / "dist").glob("*.whl")
    return built


def committed() -> list[str]:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_wheel_holds_the_committed_configs_and_nothing_private(wheel: Path) -> None:
    prefix = "amnesia_bench/configs/"
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(prefix)}
    configs = {name for name in committed() if name.startswith("configs/")}
    assert inside == {f"amnesia_bench/{name}" for name in configs}
    assert len(inside) > 10


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed to."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def amnesia(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the installed package in a folder that is no clone."""
    # Before the clone, to which a .pth file of this environment leads.
    environment = {**os.environ, "PYTHONPATH": str(site)}
    program = [sys.executable, "-m", "amnesia_bench.cli.main", *command]
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)


def test_ones_own_config_extends_that_of_the_installed_package(
    installed: Path, tmp_path: Path
) -> None:
    where = [sys.executable, "-c", "import amnesia_bench; print(amnesia_bench.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(installed))

    (tmp_path / "mine.yaml").write_text("extends: sft_miromind_2b\nsteps: 20\n")
    done = amnesia(installed, tmp_path, "train", "estimate", "--config", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert "tokens in 20 steps" in done.stdout

    (tmp_path / "table.yaml").write_text("extends: table1\nscopes: {tiny: {finetunes: [tiny_cot]}}")
    plan = ("plan", "experiment=table.yaml", "profile=tiny")
    assert amnesia(installed, tmp_path, *plan).returncode == 0

    (tmp_path / "mine.yaml").write_text("extends: sft_miromind_2b\nstepz: 20\n")
    refused = amnesia(installed, tmp_path, "train", "estimate", "--config", "mine.yaml")
    assert refused.returncode == 2
    assert "train.stepz: unknown key (mine.yaml:2)" in refused.stderr
    assert "Did you mean steps?" in refused.stderr
