"""Call the kernels of flash-linear-attention (fla) on CUDA; no other module calls fla.

fla moves its modules between releases; `fla.ops.simple_gla` is the public path in fla 0.6. Do not
use `fla.ops.lightning_attn`: its decays differ between layers, and its first head never decays.

Shapes are those of `lightning_attention`.
"""

from __future__ import annotations

from torch import Tensor

from .packing import PackedRows

# For fewer tokens than one chunk, the recurrent kernel is faster (the authors' code switches at the
# same length).
RECURRENT_BELOW = 64


def fla_lightning(
    qkv: tuple[Tensor, Tensor, Tensor],
    log_decay: Tensor,
    scale: float,
    initial_state: Tensor | None,
    packed: PackedRows | None,
) -> tuple[Tensor, Tensor]:
    """Run fla's chunked kernel, or its recurrent one if no sequence has 64 tokens or more.

    The arguments are those of `lightning_attention` in float32; returns the outputs and the states.
    """
    # The import is here because it takes seconds and Triton needs a GPU driver.
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    q, k, v = (x.contiguous() for x in qkv)
    kwargs: dict[str, object] = {
        "g_gamma": log_decay,
        "scale": scale,
        "initial_state": None if initial_state is None else initial_state.contiguous(),
        "output_final_state": True,
    }
    longest = q.shape[1] if packed is None else packed.longest
    if packed is not None:
        kwargs["cu_seqlens"] = packed.cu_seqlens
    if longest < RECURRENT_BELOW:
        output, state = fused_recurrent_simple_gla(q, k, v, **kwargs)
    else:
        if packed is not None:
            # With this argument fla computes its chunk index without a copy from the device.
            kwargs["cu_seqlens_cpu"] = packed.cu_seqlens_cpu
        output, state = chunk_simple_gla(q, k, v, **kwargs)
    return output, state
