"""Publishing against real faults: kill -9 between system calls, full disks, no permission."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amnesia_bench.errors import BusyError, MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.records.artifacts import FileEntry
from amnesia_bench.store.hashing import hashed_entries, verify_manifest
from amnesia_bench.store.layout import lease_path, new_working_path
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import Work, publishing

PUBLISH = """
import os, sys
from pathlib import Path
sys.path[:] = {path!r}
from amnesia_bench.errors import AmnesiaError
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
provenance = collect_provenance([], {{}})
{before}
final = Path(sys.argv[1])
try:
    with publishing(final) as work:
        (work.folder / "sub").mkdir()
        for name in ("model.safetensors", "sub/config.json"):
            (work.folder / name).write_bytes(b"x" * int(sys.argv[2]))
        work.finish("test", (), provenance)
except AmnesiaError as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
"""


def script(before: str = "") -> list[str]:
    return [sys.executable, "-c", PUBLISH.format(path=sys.path, before=before)]


def run(
    final: Path, *, before: str = "", size: int = 10, wrapper: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*wrapper, *script(before), str(final), str(size)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def fill(work: Work) -> tuple[FileEntry, ...]:
    (work.folder / "model.safetensors").write_bytes(b"weights")
    return hashed_entries(work.folder)


def finish(work: Work, files: tuple[FileEntry, ...] | None = None) -> None:
    work.finish("test", (), collect_provenance([], {}), files)


def publish(final: Path, before_finish: Callable[[Work], object] = lambda work: None) -> None:
    with publishing(final) as work:
        files = fill(work)
        before_finish(work)
        finish(work, files)


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_published_folder_is_whole_and_alone(tmp_path: Path) -> None:
    final = tmp_path / "new" / "out"
    with publishing(final) as work:
        assert work.folder.parent == final.parent
        assert not final.exists()
        fill(work)
        finish(work)
    assert verify_manifest(final) == []
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_an_existing_final_is_refused_and_nothing_written(tmp_path: Path, kind: str) -> None:
    final = tmp_path / "out"
    {
        "folder": final.mkdir,
        "file": final.touch,
        "link": lambda: final.symlink_to("nowhere"),
    }[kind]()
    before = final.lstat()
    with pytest.raises(UserError, match="already exists; nothing was written"):
        publish(final)
    assert list(tmp_path.iterdir()) == [final]
    assert final.lstat() == before


def test_a_final_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with pytest.raises(UserError, match="already exists"):
        publish(final, lambda work: final.mkdir())
    assert list(tmp_path.iterdir()) == [final]
    assert list(final.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, StageFailedError])
def test_a_failure_inside_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(work: Work) -> None:
        assert (work.folder / "model.safetensors").is_file()
        raise error("x")

    with pytest.raises(error):
        publish(tmp_path / "out", fail)
    assert list(tmp_path.iterdir()) == []


def test_forgetting_to_finish_is_a_bug_and_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without finish"), publishing(tmp_path / "out") as work:
        fill(work)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "extra").touch(), "extra is not in the manifest"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1), "has 1 bytes"),
    ],
)
def test_a_folder_that_is_not_its_manifest_is_not_published(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    with pytest.raises(StageFailedError, match=said):
        publish(tmp_path / "out", lambda work: damage(work.folder))
    assert list(tmp_path.iterdir()) == []


def test_a_hardlinked_input_survives_a_failure(tmp_path: Path) -> None:
    source = tmp_path / "input"
    source.write_bytes(b"kept")
    with pytest.raises(StageFailedError, match="linked is not in the manifest"):
        publish(tmp_path / "out", lambda work: (work.folder / "linked").hardlink_to(source))
    assert source.read_bytes() == b"kept"
    assert source.stat().st_nlink == 1


def test_everything_is_on_disk_before_the_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def seen_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(re.sub(r"\.out\.tmp-\w+", "WORK", os.path.relpath(path, tmp_path)))
        fsync(descriptor)

    def seen_rename(source: Path, target: Path) -> None:
        if target == tmp_path / "out":
            events.append("RENAME")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "rename", seen_rename)
    publish(tmp_path / "out")
    assert events == ["WORK/model.safetensors", "WORK/manifest.json", "WORK", "RENAME", "."]


def test_a_second_writer_is_told_busy_and_harms_nothing(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with publishing(final) as work:
        fill(work)
        second = run(final)
        assert second.returncode == BusyError.exit_code
        assert f"process {os.getpid()}" in second.stdout
        finish(work)
    assert verify_manifest(final) == []
    assert list(tmp_path.iterdir()) == [final]


def test_an_overtaken_writer_publishes_nothing(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with pytest.raises(StageFailedError, match="took over"):
        publish(final, lambda work: (lease_path(final) / "2").write_text("another's"))
    assert [path.name for path in tmp_path.iterdir()] == [".out.lease"]


# Kills the process when it is about to make its n-th call to the file system.
KILL = """
import signal
left = {calls}
def counted(event, arguments):
    global left
    if event.partition(".")[0] not in ("open", "os", "shutil") or event == "os.kill":
        return
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(counted)
def audited(name, function):
    def call(*arguments, **options):
        sys.audit("os." + name)
        return function(*arguments, **options)
    return call
for name in ("fsync", "write", "stat", "close"):
    setattr(os, name, audited(name, getattr(os, name)))
"""


def test_kill_9_at_any_moment_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    killed_before, killed_after = 0, 0
    for calls in range(0, 400, 2):
        final = tmp_path / f"{calls}" / "out"
        final.parent.mkdir()
        done = run(final, before=KILL.format(calls=calls))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        if final.exists():
            killed_after += 1
            assert verify_manifest(final) == []
        else:
            killed_before += 1
            assert all(path.name.startswith(".") for path in final.parent.iterdir())
            for empty in lease_path(final).glob("*"):  # killed before it said who it is: age it
                os.utime(empty, (1, 1))
            publish(final)
            assert verify_manifest(final) == []
            assert list(final.parent.iterdir()) == [final]
    else:
        pytest.fail("the child never got through")
    assert killed_before > 15
    assert killed_after > 2


@pytest.mark.parametrize("moment", ["in the block", "between manifest and rename"])
def test_kill_9_leaves_work_that_the_next_run_removes(tmp_path: Path, moment: str) -> None:
    final = tmp_path / "out"
    before = """
import signal
def die(source, target):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    before += "os.rename = die" if "rename" in moment else "Path.write_bytes = die"
    assert run(final, before=before).returncode == -signal.SIGKILL
    (working,) = tmp_path.glob(".out.tmp-*")
    assert (working / "manifest.json").exists() == ("rename" in moment)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lease", working.name]
    assert run(final).returncode == 0
    assert list(tmp_path.iterdir()) == [final]
    assert verify_manifest(final) == []


def test_leftovers_of_other_outputs_are_left_alone(tmp_path: Path) -> None:
    other = new_working_path(tmp_path / "other")
    other.mkdir()
    publish(tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([other, tmp_path / "out"])


def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    done = run(tmp_path / "out", before=limit, size=100_000)
    assert done.returncode == StageFailedError.exit_code, done.stderr
    assert "no space left while writing" in done.stdout
    assert everything_in(tmp_path) == []
    assert run(tmp_path / "out", size=100_000).returncode == 0


def mounted(options: str, folder: Path, then: str = "true") -> tuple[str, ...]:
    """Return a prefix that runs a command with a small file system of its own on `folder`."""
    shell = f'mount -t tmpfs -o "{options}" tmpfs "{folder}" && "$@"; r=$?; {then}; exit $r'
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell, "sh")
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"]).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    return prefix


@pytest.mark.parametrize("size", [28_000, 30_000, 1_000_000])
def test_a_full_disk_is_clean(tmp_path: Path, size: int) -> None:
    # 15 pages and one is the lease's: no room for the manifest, the second file, the first.
    wrapper = mounted("size=60k", tmp_path, then=f'ls -A "{tmp_path}"')
    done = run(tmp_path / "out", size=size, wrapper=wrapper)
    assert done.returncode == StageFailedError.exit_code, done.stderr
    message, _, listing = done.stdout.partition("choose another output.\n")
    assert "No space left on device" in message
    assert listing == ""


def test_no_room_for_the_lease_is_clean(tmp_path: Path) -> None:
    wrapper = mounted("size=64k,nr_inodes=2", tmp_path, then=f'ls -A "{tmp_path}"')
    done = run(tmp_path / "out", wrapper=wrapper)
    assert done.returncode == StageFailedError.exit_code, done.stderr
    assert "No space left on device" in done.stdout
    assert ".out" not in done.stdout.partition("choose another output.\n")[2]


def test_a_read_only_file_system_is_named(tmp_path: Path) -> None:
    done = run(tmp_path / "out", wrapper=mounted("ro", tmp_path))
    assert done.returncode == MissingEnvironmentError.exit_code, done.stderr
    assert "Read-only file system" in done.stdout


@pytest.fixture
def not_writable() -> Iterator[Path]:
    # Not pytest's own folder: another user may not even look into that.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_without_permission_is_named(not_writable: Path) -> None:
    drop = "os.setuid(65534) if os.getuid() == 0 else None"  # permissions do not bind root
    done = run(not_writable / "out", before=drop)
    assert done.returncode == MissingEnvironmentError.exit_code, done.stderr
    assert "no permission while writing" in done.stdout
    assert str(not_writable) in done.stdout
    assert everything_in(not_writable) == []


def test_a_parent_that_is_a_file_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a folder"):
        publish(tmp_path / "file" / "out")


def test_other_os_errors_of_the_work_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), publishing(tmp_path / "out") as work:
        (work.folder / "missing").read_bytes()
    assert list(tmp_path.iterdir()) == []
