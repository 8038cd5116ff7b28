"""The files in constraints/: they fit pyproject.toml, and the one for GPUs is for CUDA builds."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"cpu": ["dev"], "gpu": ["train", "eval", "vllm", "wandb"]}


def _pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in pins}


@pytest.mark.parametrize("name", EXTRAS)
def test_every_requirement_is_pinned_within_its_range(name: str) -> None:
    pins = _pins(name)
    extras = PROJECT["optional-dependencies"]
    requirements = [*PROJECT["dependencies"], *(r for e in EXTRAS[name] for r in extras[e])]
    for requirement in map(Requirement, requirements):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_the_tools_that_test_on_gpus_fit_the_pins_for_gpus() -> None:
    pins = _pins("gpu")
    for requirement in map(Requirement, PROJECT["optional-dependencies"]["dev"]):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is None or requirement.specifier.contains(version), requirement


def test_the_pins_for_gpus_include_what_a_cuda_build_of_torch_needs() -> None:
    pins = _pins("gpu")
    assert {"triton", "cuda-toolkit", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} <= set(pins)


def test_gpu_tests_install_the_pins_for_gpus() -> None:
    recipe = re.search(r"^\.gpu/installed:.*\n(?:\t.*\n)+", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    assert "-c constraints/gpu.txt" in recipe[0]


def test_the_releases_of_transformers_that_are_tested_are_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("test_transformers")
    oldest, gpu, newest = (
        Version(version)
        for version in (
            script.oldest_allowed(),
            script.pinned_for_gpus(),
            _pins("cpu")["transformers"],
        )
    )
    assert oldest < gpu < newest
    assert all((ROOT / path).exists() for path in script.TESTS)
