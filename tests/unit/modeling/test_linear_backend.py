"""What computes linear layers, and what a user without fla learns."""

import sys
import warnings

import pytest
import torch

import amnesia_bench.modeling  # noqa: F401 - the package names a function like the module
from amnesia_bench.modeling.torch_forms import pytorch_forms_on_cpu

MODULE = sys.modules["amnesia_bench.modeling.lightning_attention"]
GPU = torch.device("cuda", 0)


def test_a_gpu_without_fla_warns_once_with_what_to_install(monkeypatch):
    monkeypatch.setattr(MODULE, "_FLA_IS_INSTALLED", False)
    MODULE._warn_that_fla_is_missing.cache_clear()
    with pytest.warns(UserWarning, match="pip install flash-linear-attention==0.6.0"):
        assert MODULE.linear_backend(GPU) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MODULE.linear_backend(GPU) == "torch"
        assert MODULE.linear_backend(torch.device("cpu")) == "torch"


@pytest.mark.parametrize("imported", [True, False])
def test_fla_cannot_be_imported_where_a_model_is_built_for_a_cpu(monkeypatch, imported):
    if imported:
        monkeypatch.setitem(sys.modules, "fla", MODULE)
    else:
        monkeypatch.delitem(sys.modules, "fla", raising=False)
    before = sys.modules.get("fla")
    with pytorch_forms_on_cpu(torch.device("cpu")):
        with pytest.raises(ModuleNotFoundError):
            import fla  # noqa: F401
        with pytorch_forms_on_cpu(GPU):
            assert sys.modules["fla"] is None
    assert sys.modules.get("fla") is before
    assert ("fla" in sys.modules) == imported
