"""scripts/gpu_acceptance.py: its steps at a small size on a CPU, and steps that go wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def _report(out: Path, *arguments: str) -> dict[str, Any]:
    script = str(SCRIPTS / "gpu_acceptance.py")
    command = [sys.executable, script, "--out", str(out), "--device", "cpu", "--small", *arguments]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report["steps"]


def test_kernels_and_an_sft_step_run_on_a_cpu(tmp_path: Path) -> None:
    steps = _report(tmp_path, "--steps", "2,4,8", "--seconds", "250")
    assert steps["2"]["status"] == "ok", steps["2"]
    assert steps["2"]["values"]["packed float32 dq"]["holds"]
    assert steps["4"]["status"] == "ok", steps["4"]
    assert len(steps["4"]["values"]["losses"]["measured"]) == 8
    assert steps["4"]["values"]["top_kernels"]["measured"]
    assert steps["8"]["status"].startswith("not run: ")
    assert "== 4: sft_step" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_every_step_runs_on_a_cpu(tmp_path: Path) -> None:
    statuses = {
        name: step["status"] for name, step in _report(tmp_path, "--seconds", "900").items()
    }
    not_here = {name for name, status in statuses.items() if status.startswith("not run: ")}
    assert not_here <= {"4t", "8"}
    assert {status for name, status in statuses.items() if name not in not_here} == {"ok"}


@pytest.fixture
def acceptance(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return the module of the script, and its steps."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("gpu_acceptance")
    return script, importlib.import_module("acceptance").STEPS


def test_a_step_that_fails_dies_or_hangs_keeps_what_it_measured(
    acceptance: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, steps = acceptance

    def fails(setup: Any, values: Any) -> None:
        values.note(first=1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def dies(setup: Any, values: Any) -> None:
        values.note(first=1)
        os._exit(7)

    def hangs(setup: Any, values: Any) -> None:
        values.note(first=1)
        time.sleep(60)

    def is_too_large(setup: Any, values: Any) -> None:
        values.note(first=1)
        values.at_most("second", 2.0, 1.0, "a test")

    expected = {
        fails: "failed",
        dies: "died with exit code 7",
        hangs: "timeout",
        is_too_large: "a value is outside its limit",
    }
    for step, status in expected.items():
        monkeypatch.setitem(steps, "1", step)
        result = script.run_step("1", None, tmp_path, 3)
        assert result["status"] == status
        assert result["values"]["first"] == {"measured": 1}
    monkeypatch.setitem(steps, "1", fails)
    assert "illegal memory access" in script.run_step("1", None, tmp_path, 3)["error"]


@pytest.mark.parametrize(("version", "tile"), [("3.7.0", 32), ("3.7.1", 64), ("3.10.0", 64)])
def test_an_older_triton_gets_tiles_that_it_compiles_correctly(
    acceptance: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, version: str, tile: int
) -> None:
    import torch

    from amnesia_bench.modeling import lightning_fla

    setup = importlib.import_module("acceptance.setup")
    monkeypatch.setattr(lightning_fla, "_TILINGS", dict(lightning_fla._TILINGS))
    monkeypatch.setattr(setup.importlib.metadata, "version", lambda _: version)
    setup.support_older_triton()
    assert lightning_fla._TILINGS[torch.bfloat16].largest == tile


def test_an_older_varlen_attn_repeats_keys_and_values(
    acceptance: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from amnesia_bench.modeling import causal_attention

    def older(q: Any, k: Any, v: Any, *, scale: float) -> Any:
        return q, k, v, scale

    setup = importlib.import_module("acceptance.setup")
    monkeypatch.setattr(causal_attention, "varlen_attn", older)
    setup.support_older_torch()
    q, k = torch.randn(5, 4, 8), torch.randn(5, 2, 8)
    for grouped in (True, False):
        called = causal_attention.varlen_attn(q, k, k, scale=2.0, enable_gqa=grouped)
        _, keys, values, scale = called
        expected = k.repeat_interleave(2, dim=1) if grouped else k
        assert torch.equal(keys, expected)
        assert torch.equal(values, expected)
        assert scale == 2.0
