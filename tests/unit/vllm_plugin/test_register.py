"""The entry point by which vLLM finds the plugin, and what it registers."""

import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from amnesia_bench.vllm_plugin import ARCHITECTURES, PLUGIN_GROUP, PLUGIN_NAME, register

ROOT = Path(__file__).resolve().parents[3]


def test_the_package_declares_the_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"][PLUGIN_GROUP][PLUGIN_NAME].partition(":")
    assert getattr(import_module(module), function) is register


def test_registering_twice_is_registering_once(monkeypatch: pytest.MonkeyPatch) -> None:
    models: dict[str, str] = {}
    registry = SimpleNamespace(register_model=models.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    register()
    register()
    assert models == ARCHITECTURES
    assert all(find_spec(model.partition(":")[0]) for model in models.values())
    for name in ("hypenet", "jet_nemotron"):
        architecture = type(AutoConfig.for_model(name)).__name__.replace("Config", "ForCausalLM")
        assert architecture in models
