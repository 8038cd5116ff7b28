"""What vLLM cannot run, or would refuse without the reason, is refused before vLLM starts."""

import json
import shutil
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.inference import vllm_checks
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.vllm_checks import check_start
from amnesia_bench.modeling.configuration_hypenet import HypeNetConfig
from amnesia_bench.vllm_plugin import PLUGIN_GROUP, PLUGIN_NAME
from amnesia_bench.vllm_plugin.support import check_support
from tests.support.tiny_models import SHAPE, tiny_model


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation with the entry point, and no choice of plugins."""
    point = EntryPoint(PLUGIN_NAME, "amnesia_bench.vllm_plugin:register", PLUGIN_GROUP)
    monkeypatch.setattr(vllm_checks, "entry_points", lambda group: EntryPoints([point]))
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


@pytest.fixture
def hypenet(tmp_path: Path) -> Path:
    tiny_model("hypenet").save_pretrained(tmp_path)
    return tmp_path


def test_options_become_changes_of_the_config(hypenet: Path) -> None:
    assert check_start(hypenet, EngineOptions()) == {}
    options = EngineOptions(attn_logits_scaling="hype 500", max_context_tokens=20000)
    changes = {"attn_logits_scaling": "hype 500", "max_position_embeddings": 20000}
    assert check_start(hypenet, options) == changes
    assert check_start(hypenet, EngineOptions(max_context_tokens=100)) == {}


def test_a_logit_scale_that_cannot_be_is_refused(hypenet: Path) -> None:
    with pytest.raises(UserError, match=r"attn_logit_scale_a is 1\.0"):
        check_start(hypenet, EngineOptions(attn_logits_scaling="hype 1"))


def test_other_models_need_no_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "")
    tiny_model("qwen2").save_pretrained(tmp_path)
    assert check_start(tmp_path, EngineOptions()) == {}
    with pytest.raises(UserError, match="device=cuda:1"):
        check_start(tmp_path, EngineOptions(device="cuda:1"))


def test_tensors_of_something_else_are_refused(hypenet: Path) -> None:
    shutil.copy(hypenet / "model.safetensors", hypenet / "reference.safetensors")
    with pytest.raises(UserError, match=r"reference\.safetensors: is not a part") as failure:
        check_start(hypenet, EngineOptions())
    assert "Move it out of the folder" in str(failure.value)


@pytest.mark.parametrize(
    ("allowed", "advice"),
    [
        ("", "VLLM_PLUGINS=amnesia_bench"),
        ("lora_resolver", "VLLM_PLUGINS=lora_resolver,amnesia_bench"),
    ],
)
def test_a_plugin_that_is_switched_off_is_named(
    allowed: str, advice: str, hypenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", allowed)
    with pytest.raises(UserError, match="switches off the plugin") as failure:
        check_start(hypenet, EngineOptions())
    assert str(failure.value).endswith(advice)
    monkeypatch.setenv("VLLM_PLUGINS", f"a,{PLUGIN_NAME}")
    assert check_start(hypenet, EngineOptions()) == {}


def test_an_installation_without_the_entry_point_is_named(
    hypenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_checks, "entry_points", lambda group: EntryPoints([]))
    with pytest.raises(MissingEnvironmentError, match="lacks the entry point") as failure:
        check_start(hypenet, EngineOptions())
    assert "pip install" in str(failure.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer_types": ["attn"] * 4}, "no linear layers"),
        ({"mixer_types": ["lightning-attn"] * 4}, "no softmax layers"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (
            {
                "attn_use_rope": True,
                "rope_parameters": {
                    "rope_type": "dynamic",
                    "rope_theta": 10000.0,
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                },
            },
            "rope_type is 'dynamic'",
        ),
    ],
)
def test_a_config_that_vllm_cannot_run_is_refused(
    changes: dict[str, Any], message: str, hypenet: Path
) -> None:
    file = hypenet / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(UserError, match=message) as failure:
        check_start(hypenet, EngineOptions())
    assert "--engine transformers" in str(failure.value)


def test_heads_must_be_divisible_among_gpus() -> None:
    mixers = ["lightning-attn", "attn"] * 2
    config = HypeNetConfig(**SHAPE, mixer_types=mixers, lightning_nkv=4)
    check_support(config, ranks=4)  # two key/value heads, each of them on two GPUs
    with pytest.raises(UserError, match="num_attention_heads is 4, which cannot be split over 3"):
        check_support(config, ranks=3)
