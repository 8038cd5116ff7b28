"""Only a run on a GPU that asks for it uses deterministic algorithms, and only while it runs."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from amnesia_bench.config.load import load_training
from amnesia_bench.training.determinism import deterministic_algorithms, rounding
from amnesia_bench.training.folder import RunIdentity, check_resume_matches, read_run_identity
from tests.support.training_runs import training_run

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
enabled = torch.are_deterministic_algorithms_enabled


def test_a_gpu_uses_deterministic_algorithms_within_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, ":16:8")  # so that it is restored after the test
    monkeypatch.delenv(VARIABLE)
    with deterministic_algorithms(torch.device("cuda", 0)):
        assert enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ[VARIABLE] == ":4096:8"
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize(
    ("device", "deterministic", "expected"),
    [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)],
)
def test_it_has_to_be_asked_for_and_a_cpu_needs_none(
    monkeypatch: pytest.MonkeyPatch, device: str, deterministic: bool, expected: bool
) -> None:
    monkeypatch.setenv(VARIABLE, ":16:8")
    processes: Any = SimpleNamespace(device=torch.device(device))
    with rounding(processes.device, deterministic=deterministic):
        assert enabled() == expected


def test_the_tiny_profile_is_deterministic_and_the_full_scale_is_fast() -> None:
    assert load_training("tiny_sft_cot").train.deterministic
    assert not load_training("sft_miromind_9b").train.deterministic


def test_training_json_records_the_numerics_of_a_gpu_and_nothing_on_a_cpu(tmp_path: Any) -> None:
    for numerics in ({"float32_products": "float32"}, {}):
        identity = RunIdentity(run=training_run(), parents=(), numerics=numerics)
        check_resume_matches(tmp_path, identity)
        assert ("numerics" in (tmp_path / "training.json").read_text()) == bool(numerics)
        assert read_run_identity(tmp_path / "training.json") == identity
