"""Engines by name: what none of them can run is said before anything is loaded."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.inference import load_engine as load_engine_module
from amnesia_bench.inference.load_engine import load_engine
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.requests.engines import ENGINES
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_named(tmp_path: Path) -> None:
    folder = save_model("hypenet", tmp_path)
    with pytest.raises(MissingEnvironmentError, match="the vllm engine needs vLLM") as failure:
        load_engine("vllm", folder, EngineOptions())
    assert 'pip install "amnesia-bench[eval,vllm]"' in str(failure.value)


def test_an_unknown_engine_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown engine vlm") as failure:
        load_engine("vlm", tmp_path, EngineOptions())
    assert "vllm" in str(failure.value)


def save_model(name: str, folder: Path) -> Path:
    tiny_model(name).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_one_device_needs_no_other_process(tmp_path: Path) -> None:
    folder = save_model("qwen2", tmp_path)
    engine = load_engine("transformers", folder, EngineOptions(device="cpu"))
    assert isinstance(engine, TransformersEngine)


def mapped_ranges(folder: Path) -> list[range]:
    """The addresses at which this process has mapped files of a folder."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    bounds = [line.split()[0].split("-") for line in lines if f"{folder.resolve()}/" in line]
    return [range(int(start, 16), int(stop, 16)) for start, stop in bounds]


@pytest.mark.parametrize("name", ["hypenet", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_host_memory_are_pages_of_the_file_and_no_copies(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So processes for several GPUs share them, and `to(device)` copies from the file's pages."""
    tiny_model(name).to(dtype).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    moved = []

    def to(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        moved.append(device)
        ranges = mapped_ranges(tmp_path)
        for parameter in module.parameters():
            address = parameter.data_ptr()
            assert any(address in pages for pages in ranges)
        return module

    monkeypatch.setattr(PreTrainedModel, "to", to)
    TransformersEngine.load(tmp_path, EngineOptions(device="cpu"))
    assert moved == [torch.device("cpu")]


def test_the_logit_scale_of_a_hypenet_is_taken_in_place_of_its_own(tmp_path: Path) -> None:
    folder = save_model("hypenet", tmp_path)
    before = (folder / "config.json").read_bytes()
    own, other = (
        load_engine(
            "transformers", folder, EngineOptions(device="cpu", attn_logits_scaling=scaling)
        )
        for scaling in (None, "hype 500")
    )
    assert isinstance(other, TransformersEngine)
    assert other.module.config.attn_logit_scale_a == 500
    assert other.settings == {**own.settings, "attn_logits_scaling": "hype 500"} != own.settings
    assert (folder / "config.json").read_bytes() == before


def test_a_logit_scale_that_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = save_model("hypenet", tmp_path / "hypenet")
    for scaling, said in (
        ("hype five", "attn_logits_scaling is 'hype five'"),
        ("hype 1", "is 1.0"),
    ):
        with pytest.raises(UserError, match=said):
            load_engine("transformers", folder, EngineOptions(attn_logits_scaling=scaling))
    folder = save_model("qwen2", tmp_path / "qwen2")
    for engine in ("transformers", "vllm"):
        with pytest.raises(UserError, match="only applies to HypeNet; this checkpoint is qwen2"):
            load_engine(engine, folder, EngineOptions(attn_logits_scaling="hype 500"))


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_uses_all_visible_gpus(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(load_engine_module, "DataParallelEngine", lambda *given: given)
    for visible, expected in ((None, ["0", "1"]), ("4,MIG-7/1/0", ["4", "MIG-7/1/0"])):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        load, _, _, gpus = load_engine(name, tmp_path, EngineOptions())
        assert gpus == expected
        assert load.__self__.__name__.lower() == f"{name}engine"


@pytest.mark.parametrize("native", [True, False])
def test_half_precision_is_float32_on_a_cpu_without_its_products(
    native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("qwen2").bfloat16().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    named = [
        TransformersEngine.load(tmp_path, EngineOptions(dtype=dtype, device="cpu")).settings
        for dtype in ("auto", "bfloat16")
    ]
    expected = ["bfloat16" if native else "float32", "bfloat16"]
    assert [settings["dtype"] for settings in named] == expected
