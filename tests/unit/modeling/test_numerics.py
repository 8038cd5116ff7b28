"""Float32 is multiplied in float32, whatever the environment of the process says."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from amnesia_bench.modeling import lightning_attention
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
def test_a_hypenet_records_what_computes_its_lightning_attention(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr(lightning_attention, "_FLA_IS_INSTALLED", installed)
    lightning_attention._warn_that_fla_is_missing.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend = numeric_settings(torch.device("cuda", 0), "hypenet")["lightning"]
    assert backend.startswith("fla ") if installed else backend == "torch"
