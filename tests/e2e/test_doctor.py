"""`amnesia doctor`: what a machine can do, and no traceback whatever is broken."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.pipeline.doctor import devices, examination, packages, services, storage
from amnesia_bench.pipeline.doctor.result import Health, HealthCheck, examined, lacking, output_of
from amnesia_bench.requests.experiments import DoctorRequest
from amnesia_bench.store.layout import STORE_VARIABLE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no import of torch, no 12 attempts to escape: each has a test of its own."""
    monkeypatch.setattr(examination, "hub_checks", lambda: [])
    monkeypatch.setattr(examination, "sandbox_checks", lambda: [])
    monkeypatch.setattr(devices, "_torch_checks", lambda **_: [])


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(stat.S_IRWXU)


def by_topic(checks: Any) -> dict[str, HealthCheck]:
    return {check.topic: check for check in checks}


def test_a_healthy_machine_exits_with_0_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path / "bin", "sinfo", "echo 'gpu* up 1-00:00:00 4 gpu:h100:8'")
    program(tmp_path / "bin", "nvidia-smi", "echo 'NVIDIA H100, 81559 MiB, 560.35'")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    store = tmp_path / "not yet there"
    assert main(["doctor", "--store", str(store), "--json"]) == 0
    rows = {row["topic"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["SLURM"]["text"] == "partition gpu*: up, 4 nodes, limit 1-00:00:00, gpu:h100:8"
    assert rows["GPU"]["text"] == "NVIDIA H100, 81559 MiB, 560.35"
    assert rows["packages"]["health"] == rows["leases"]["health"] == "ok"
    assert rows["packages [vllm]"]["fix"] == 'pip install "amnesia-bench[vllm]"'
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}


def test_an_empty_path_is_absence_and_not_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "not installed; experiments run on this machine" in out
    assert "Nothing is broken." in out


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo fatal: no controller >&2; exit 1", "sinfo fails: fatal: no controller"),
        ("exit 3", "sinfo fails: exit code 3"),
        ("exec sleep 60", "sinfo has not answered within 0 seconds"),
        ("printf '\\377 \\n'", "cannot be examined (ValueError"),
        ("", "it has no partition that you may use"),
    ],
)
def test_a_broken_program_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, text: str
) -> None:
    program(tmp_path / "bin", "sinfo", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(devices, "_SECONDS", 0.3 if "sleep" in script else 30.0)
    (check,) = examined("SLURM", devices.slurm_checks)
    assert check.health is Health.BROKEN
    assert text in check.text


def test_a_program_that_cannot_start_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "sinfo", "")
    (tmp_path / "bin" / "sinfo").write_bytes(b"\x7fELF, not")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (check,) = examined("SLURM", devices.slurm_checks)
    assert check.text == "sinfo cannot be started (Exec format error)"


def test_a_store_that_is_a_file_or_unreadable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(examination, "slurm_checks", lambda: [])
    monkeypatch.setattr(examination, "gpu_checks", lambda: [])
    assert main(["doctor", "--store", str(tmp_path / "file" / "store")]) == 6
    out = capsys.readouterr().out
    assert "is a file" in out
    assert "export AMNESIA_STORE=DIR" in out
    assert "Broken: store." in out
    (tmp_path / "of another user").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: path.name != "of another user")
    (check,) = storage.storage_checks(tmp_path)
    assert check.text == f"{tmp_path / 'of another user'}: no permission to read or write"
    assert by_topic(storage.storage_checks(tmp_path / "new"))["store"].health is Health.OK
    monkeypatch.setattr(os, "access", lambda *_: False)
    (check,) = storage.storage_checks(tmp_path)
    assert "no permission" in check.text


def test_a_file_system_without_links_space_or_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(storage.time, "time", lambda: 1e9)
    usage = type("Usage", (), {"free": 5_000_000_000})
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: usage)
    checks = by_topic(storage.storage_checks(tmp_path / "store"))
    assert checks["hard links"].health is Health.ABSENT
    assert (checks["clock"].health, checks["disk"].health) == (Health.BROKEN, Health.BROKEN)
    assert checks["disk"].text.startswith("5 GB free")
    assert list(tmp_path.iterdir()) == []


def test_wrong_missing_and_damaged_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str | None:
        if name == "torch":
            return "2.1.0"
        if name == "numpy":
            return None  # metadata without a version
        if name == "rich":
            raise ValueError("damaged")
        if name == "wandb":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    real = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    checks = by_topic(packages.package_checks())
    core = checks["packages"]
    assert core.health is Health.BROKEN
    assert "numpy 0+damaged" in core.text
    assert "rich 0+damaged" in core.text
    assert "torch 2.1.0 (needs" in checks["packages [train]"].text
    assert checks["packages [wandb]"].health is Health.ABSENT
    assert checks["packages [wandb]"].fix == 'pip install "amnesia-bench[wandb]"'

    def refuse(_: str) -> None:
        raise OSError("no metadata")

    monkeypatch.setattr(metadata, "requires", refuse)
    checks = by_topic(packages.package_checks())
    assert checks["amnesia-bench"].health is Health.BROKEN


def test_torch_is_examined_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    answer = {
        "version": "2.13.0", "cuda": "13.0", "gpus": [["H100", 80e9, 9, 0]],
        "kernels": {"triton": "3.7.1", "fla": "! ImportError: no"},
    }  # fmt: skip
    monkeypatch.setattr(devices, "_PROBE", f"print({json.dumps(answer)!r})")
    checks = by_topic(devices._torch_checks(has_driver=True))
    assert checks["torch GPU"].text == "H100, 80 GB, compute capability 9.0"
    assert checks["fla"].health is Health.BROKEN
    answer = {"version": "2.13.0", "cuda": None, "gpus": [], "kernels": {}}
    monkeypatch.setattr(devices, "_PROBE", f"print({json.dumps(answer)!r})")
    (check,) = devices._torch_checks(has_driver=True)
    assert (check.health, check.text) == (
        Health.BROKEN, "2.13.0, for CPUs: it cannot use the GPU",
    )  # fmt: skip
    monkeypatch.setattr(devices, "_PROBE", "import os; os.abort()")
    (check,) = examined("torch", lambda: devices._torch_checks(has_driver=False))
    assert "exit code -6" in check.text
    monkeypatch.setattr(devices, "_PROBE", "print('no JSON')")
    (check,) = examined("torch", lambda: devices._torch_checks(has_driver=False))
    assert "cannot be examined (JSONDecodeError" in check.text


def test_services_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    checks = by_topic(services.hub_checks())
    assert checks["hub"].health is Health.ABSENT
    assert "amnesia fetch" in checks["hub"].fix
    monkeypatch.setenv("HF_ENDPOINT", "no url")
    assert by_topic(services.hub_checks())["hub"].health is Health.ABSENT
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids" in by_topic(services.hub_checks())["hub"].text

    class Api:
        def __init__(self, **_: object) -> None:
            raise ValueError("401 Unauthorized\nmore")

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setitem(sys.modules, "wandb", type("wandb", (), {"Api": Api, "__spec__": True}))
    (check,) = services.wandb_checks()
    assert check.text == "the API key does not work (401 Unauthorized)"
    assert check.fix == "wandb login --relogin"


def test_a_check_before_a_fault_is_kept() -> None:
    def examination() -> Any:
        yield lacking("a", "b")
        raise RecursionError("deep")

    first, second = examined("topic", examination)
    assert (first.topic, second.topic, second.health) == ("a", "topic", Health.BROKEN)


def test_without_rich_the_rows_are_lines(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from amnesia_bench.pipeline.doctor import examination as e\n"
        "for name in ('hub', 'sandbox', 'gpu', 'wandb', 'slurm'):\n"
        "    setattr(e, name + '_checks', lambda: [])\n"
        "from amnesia_bench.cli.main import main\n"
        "sys.exit(main(['doctor', '--store', sys.argv[1]]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ok: leases: " in done.stdout
    assert "Traceback" not in done.stderr
    assert output_of(["no such program"], 1) is None
    assert DoctorRequest().gpu is False


@pytest.mark.bubblewrap
def test_the_sandbox_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = examined("sandbox", devices.sandbox_checks)
    assert check.health is Health.OK
    monkeypatch.setattr(devices, "run_checks", lambda _: (_ for _ in ()).throw(OSError("refused")))
    (check,) = examined("sandbox", devices.sandbox_checks)
    assert check.text == "cannot be examined (OSError: refused)"
