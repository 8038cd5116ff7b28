"""Call fla's kernels of the gated delta rule on CUDA; no other module does.

`fla.ops.gated_delta_rule.chunk_gated_delta_rule` is excluded from compiled graphs by fla, so its
forward and backward functions (fla 0.6.0) are called here, and `gated_delta_op` makes a custom op
of them.

Shapes are those of `gated_delta_rule`; C chunks.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .gated_delta_torch import DeltaInputs
from .packing import CHUNK

# On Hopper, fla would replace a Triton kernel by one in TileLang if that package is installed. Its
# own tests may fail with TileLang (fla 0.6.0), and we have tested only the Triton kernel.
os.environ.setdefault("FLA_TILELANG", "0")


class ChunkedResult(NamedTuple):
    """The results of the chunked kernels; the last two are for the backward pass."""

    output: Tensor  # [B, T, H, V]
    end: Tensor  # [B or N, H, K, V] float32
    sums: Tensor  # [B, T, H] float32: cumulative decays within chunks
    solution: Tensor  # [B, T, H, CHUNK]: the inverse of the triangular system of each chunk


def fla_delta_step(
    inputs: DeltaInputs, scale: float, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run the recurrent kernel, which has no backward pass; return outputs and states."""
    # The import is here because it takes seconds and Triton needs a GPU driver.
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule

    q, k, v, decay, rate = (x.contiguous() for x in inputs)
    output, end = fused_recurrent_gated_delta_rule(
        q,
        k,
        v,
        g=decay,
        beta=rate,
        scale=scale,
        initial_state=None if state is None else state.contiguous(),
        output_final_state=True,
    )
    return output, end


def fla_delta_forward(
    inputs: DeltaInputs,
    scale: float,
    state: Tensor | None,
    documents: tuple[Tensor, Tensor] | None,
) -> ChunkedResult:
    """Run the chunked kernels.

    Args:
        inputs: q, k and v in one dtype; decays and rates in float32.
        scale: factor on q.
        state: initial states in float32, or None for zeros.
        documents: boundaries [N + 1], and the document and number of each chunk [C, 2]; or None.
    """
    from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_fwd

    q, k, v, decay, rate = (x.contiguous() for x in inputs)
    sums, output, solution, end, *_ = chunk_gated_delta_rule_fwd(
        q=q,
        k=k,
        v=v,
        g=decay,
        beta=rate,
        initial_state=None if state is None else state.contiguous(),
        output_final_state=True,
        **_common(scale, documents),
    )
    return ChunkedResult(output.to(v.dtype), end, sums, solution)


def fla_delta_backward(
    grads: tuple[Tensor, Tensor | None],
    inputs: DeltaInputs,
    result: tuple[Tensor, Tensor],
    scale: float,
    state: Tensor | None,
    documents: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v, decays, rates and initial states (empty if None).

    `grads` are those of the outputs and of the final states, and `result` has the last two tensors
    of `ChunkedResult`; the other arguments are those of `fla_delta_forward`.
    """
    from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_bwd

    q, k, v, _, rate = (x.contiguous() for x in inputs)
    dq, dk, dv, drate, ddecay, initial, *_ = chunk_gated_delta_rule_bwd(
        q=q,
        k=k,
        v=v,
        g=result[0],
        beta=rate,
        A=result[1],
        initial_state=None if state is None else state.contiguous(),
        do=grads[0].contiguous(),
        dht=None if grads[1] is None else grads[1].contiguous(),
        **_common(scale, documents),
    )
    gradients = (dq, dk, dv, ddecay, drate)
    typed = tuple(x.to(y.dtype) for x, y in zip(gradients, inputs, strict=True))
    return *typed, q.new_empty(0, dtype=torch.float32) if state is None else initial


def _common(scale: float, documents: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    bounds, chunks = documents or (None, None)
    return {"scale": scale, "cu_seqlens": bounds, "chunk_indices": chunks, "chunk_size": CHUNK}
