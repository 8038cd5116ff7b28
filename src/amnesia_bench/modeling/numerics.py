"""Choose and record how a GPU rounds; on a CPU, PyTorch has only one way."""

from __future__ import annotations

import torch

from amnesia_bench.modeling.configuration_hypenet import HypeNetConfig
from amnesia_bench.modeling.configuration_jet_nemotron import JetNemotronConfig
from amnesia_bench.modeling.lightning_attention import linear_backend

_LINEAR_LAYERS = {
    HypeNetConfig.model_type: "lightning",
    JetNemotronConfig.model_type: "gated_delta",
}


def use_exact_float32() -> None:
    """Multiply float32 matrices in float32 from now on, never in TF32.

    TF32 has 10 bits of mantissa. Float32 models are the small ones, which are to give the same
    results as on a CPU; large models compute in bfloat16, so TF32 would not make them faster. The
    choice is explicit because the environment may choose otherwise: NVIDIA's containers set
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, and convolutions use TF32 by default.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def numeric_settings(device: torch.device, model_type: str) -> dict[str, str]:
    """Return the settings that affect how a model rounds on a device; none on a CPU."""
    if device.type == "cpu":
        return {}
    precision = torch.get_float32_matmul_precision()
    settings = {"float32_products": "float32" if precision == "highest" else f"TF32 ({precision})"}
    if model_type in _LINEAR_LAYERS:
        settings[_LINEAR_LAYERS[model_type]] = linear_backend(device)
    return settings
