import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pydantic
import pytest

from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Provenance
from amnesia_bench.store import provenance
from amnesia_bench.store.provenance import collect_provenance, ended_now


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A committed package in a repository of its own."""
    folder = tmp_path / "repository" / "src" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("x = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_it_says_what_ran_where_and_when() -> None:
    record = collect_provenance(["amnesia", "restore"], {"data": 3})
    assert record.python == ".".join(map(str, sys.version_info[:3]))
    assert record.seeds == {"data": 3}
    assert record.packages["pydantic"] == pydantic.VERSION
    assert record.hardware.cpu_cores == os.cpu_count()
    assert record.hardware.memory_bytes > 1 << 28
    ended = ended_now(record)
    assert record.ended is None
    assert ended.ended is not None
    assert datetime.fromisoformat(ended.ended) >= datetime.fromisoformat(ended.started)
    assert codec.from_json(Provenance, codec.to_json(ended), "p") == ended


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("pydantic", "no-such-package-of-ours"))
    assert list(collect_provenance([], {}).packages) == ["pydantic"]


def test_no_environment_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    command = [
        "amnesia",
        "wandb.api_key=hunter2",
        "--hf-token",
        "hunter2",
        "--HF_TOKEN=hunter2",
        "https://me:hunter2@host/x",
        "hf_" + "hunter2" * 4,
        "context_tokens=32768",
    ]
    record = collect_provenance(command, {})
    assert "hunter2" not in str(codec.to_json(record))
    assert record.command[0] == "amnesia"
    assert record.command[-1] == "context_tokens=32768"
    assert record.command[5] == "https://***@host/x"


def test_a_clean_commit_a_change_and_a_new_module_differ(package: Path) -> None:
    clean = provenance._code_state(package)
    assert clean.commit == git(package, "rev-parse", "HEAD")
    assert (clean.dirty, clean.diff_sha256) == (False, None)

    (package / "__init__.py").write_text("x = 2\n")
    changed = provenance._code_state(package)
    assert (changed.commit, changed.dirty) == (clean.commit, True)

    git(package, "checkout", "-q", ".")
    (package / "new.py").write_text("y = 1\n")
    untracked = provenance._code_state(package)
    (package / "new.py").write_text("y = 2\n")
    edited = provenance._code_state(package)
    hashes = {changed.diff_sha256, untracked.diff_sha256, edited.diff_sha256}
    assert untracked.dirty
    assert len(hashes) == 3
    assert None not in hashes


def test_the_repository_of_someone_else_is_not_ours(package: Path) -> None:
    installed = package.parents[1] / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    state = provenance._code_state(installed)
    assert (state.commit, state.dirty, state.diff_sha256) == (None, None, None)


def test_without_git_nothing_is_claimed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance._code_state(package).commit is None


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from amnesia_bench.store.provenance import collect_provenance;"
        "collect_provenance([], {}); sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
