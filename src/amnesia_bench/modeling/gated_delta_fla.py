"""Call fla's kernels of the gated delta rule on CUDA; no other module does.

Shapes are those of `gated_delta_rule`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gated_delta_torch import DeltaInputs
from .packing import PackedRows

# For fewer tokens than one chunk, the recurrent kernel is faster; it has no backward pass.
RECURRENT_BELOW = 64


def fla_gated_delta(
    inputs: DeltaInputs, scale: float, initial_state: Tensor | None, packed: PackedRows | None
) -> tuple[Tensor, Tensor]:
    """Run fla's chunked kernel, or its recurrent one for short sequences without gradients.

    The arguments and results are those of `gated_delta_rule`. Queries and keys get the dtype of the
    values; decays and rates are float32.
    """
    # The import is here because it takes seconds and Triton needs a GPU driver.
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    q, k, v = (x.to(inputs.v.dtype).contiguous() for x in inputs[:3])
    kwargs: dict[str, object] = {
        "g": inputs.log_decay.float().contiguous(),
        "beta": inputs.rate.float().contiguous(),
        "scale": scale,
        "initial_state": None if initial_state is None else initial_state.contiguous(),
        "output_final_state": True,
    }
    longest = v.shape[1] if packed is None else packed.longest
    if packed is not None:
        kwargs["cu_seqlens"] = packed.cu_seqlens
    has_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if longest < RECURRENT_BELOW and not has_gradient:
        output, state = fused_recurrent_gated_delta_rule(q, k, v, **kwargs)
    else:
        if packed is not None:
            # With this argument fla computes its chunk index without a copy from the device.
            kwargs["cu_seqlens_cpu"] = packed.cu_seqlens_cpu
        output, state = chunk_gated_delta_rule(q, k, v, **kwargs)
    return output, state
