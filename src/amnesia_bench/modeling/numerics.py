"""Choose and record how products are computed and rounded."""

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


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a device has instructions for products of a dtype.

    A CPU without them (x86 before AVX-512) converts each operand. Prefill is then 3.4 times as slow
    in bfloat16 as in float32, and a decoding step of 24 rows 2.6 times (Gemma 3 270M, one core).
    """
    if device.type != "cpu":
        return True
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def numeric_settings(device: torch.device, model_type: str) -> dict[str, str]:
    """Return the settings that affect how a model rounds on a device; none on a CPU."""
    if device.type == "cpu":
        return {}
    precision = torch.get_float32_matmul_precision()
    settings = {"float32_products": "float32" if precision == "highest" else f"TF32 ({precision})"}
    if model_type in _LINEAR_LAYERS:
        settings[_LINEAR_LAYERS[model_type]] = linear_backend(device)
    return settings
