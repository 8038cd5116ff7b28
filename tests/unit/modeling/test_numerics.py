"""Float32 is multiplied in float32, whatever the environment of the process says."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch

from amnesia_bench.modeling.numerics import numeric_settings, use_exact_float32


@pytest.fixture
def tf32() -> Iterator[None]:
    """A process in which TF32 was switched on, as by a variable of NVIDIA's containers."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_tf32_is_switched_off_and_the_record_says_what_is_used(tf32: None) -> None:
    gpu = torch.device("cuda", 0)
    assert numeric_settings(gpu, "qwen3") == {"float32_products": "TF32 (high)"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use_exact_float32()
    assert numeric_settings(gpu, "qwen3") == {"float32_products": "float32"}
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_settings_of_a_cpu_have_no_entry() -> None:
    assert numeric_settings(torch.device("cpu"), "hypenet") == {}


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(
    ("model_type", "layers"), [("hypenet", "lightning"), ("jet_nemotron", "gated_delta")]
)
def test_a_hybrid_model_records_what_computes_its_linear_layers(
    monkeypatch: pytest.MonkeyPatch, model_type: str, layers: str, installed: bool
) -> None:
    module = import_module("amnesia_bench.modeling.lightning_attention")
    monkeypatch.setattr(module, "_FLA_IS_INSTALLED", installed)
    module._warn_that_fla_is_missing.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend = numeric_settings(torch.device("cuda", 0), model_type)[layers]
    assert backend.startswith("fla ") if installed else backend == "torch"
