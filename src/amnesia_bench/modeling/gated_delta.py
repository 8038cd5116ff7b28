"""The gated delta rule: a linear layer that corrects what its state predicts for a key.

Per head, with a decay g_t <= 0 (logarithm) and a rate b_t in [0, 1] for each token:

    S'_t = exp(g_t) S_(t-1)
    S_t = S'_t + k_t (b_t (v_t - k_t^T S'_t))^T
    o_t = scale q_t^T S_t

Source: Gated Delta Networks, arXiv 2412.06464.

Shapes: B batch, T tokens, H heads, K key dim, V value dim, N documents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gated_delta_op import gated_delta_by_op
from .gated_delta_torch import DeltaInputs, torch_gated_delta, torch_gated_delta_packed
from .input_errors import InvalidModelInputError
from .lightning_attention import (
    fla_is_installed,
    fla_ops_are_used_everywhere,
    linear_backend,
)
from .packing import Boundaries, PackedRows

# Known at import, so that a compiled graph does not search for a package.
_FLA_IS_INSTALLED = fla_is_installed()


def gated_delta_rule(
    inputs: DeltaInputs,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Boundaries | None = None,
    *,
    need_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Apply the gated delta rule to a batch of sequences.

    On CUDA this function uses fla's kernels if fla is installed; otherwise, and for float64, it
    uses plain PyTorch. It chooses at each call. States are float32 (float64 for float64 values),
    even under autocast. PyTorch also computes in float32; fla multiplies values of 16 bits as such,
    as the authors' code does.

    Args:
        inputs: queries, keys, values, decays and rates.
        scale: factor on the queries; K^-1/2 when None.
        initial_state: state before the first token [B, H, K, V], or [N, H, K, V] with
            `cu_seqlens`; zero when None.
        cu_seqlens: boundaries, from 0 to T, of N documents that are packed in one row (B = 1). Each
            document starts from a separate initial state.
        need_state: whether the caller uses the final states.

    Returns:
        The outputs [B, T, H, V] in the dtype of the values, and the state [B or N, H, K, V] after
        the last token of each row or document, which may be None if it is not needed.

    Raises:
        InvalidModelInputError: the shapes do not match, or the boundaries do not increase from 0
            to T.
    """
    packed = None
    if cu_seqlens is not None:
        packed = PackedRows.from_cu_seqlens(cu_seqlens, inputs.v.shape[1], inputs.v.device)
    _check_shapes(inputs, initial_state, packed)
    scale = inputs.q.shape[3] ** -0.5 if scale is None else scale
    dtype = inputs.v.dtype
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    has_kernels = (inputs.v.is_cuda and _FLA_IS_INSTALLED) or fla_ops_are_used_everywhere()
    by_op = has_kernels and precise == torch.float32
    if inputs.v.is_cuda and not by_op and not torch.compiler.is_compiling():
        linear_backend(inputs.v.device)
    with torch.autocast(inputs.v.device.type, enabled=False):
        state = None if initial_state is None else initial_state.to(precise)
        if by_op:
            output, state = gated_delta_by_op(inputs, scale, state, packed)
        elif packed is not None and state is None and not need_state:
            output = torch_gated_delta_packed(inputs.to(precise), scale, packed)
        else:
            output, state = torch_gated_delta(inputs.to(precise), scale, state, packed)
    return output.to(dtype), state


def _check_shapes(
    inputs: DeltaInputs, initial_state: Tensor | None, packed: PackedRows | None
) -> None:
    q, k, v, log_decay, rate = inputs
    tokens = q.shape[:3]
    if q.ndim != 4 or k.shape != q.shape or v.ndim != 4 or v.shape[:3] != tokens:
        raise InvalidModelInputError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}",
            hint="Expected [B, T, H, K] for q and k, and [B, T, H, V] for v.",
        )
    if log_decay.shape != tokens or rate.shape != tokens:
        raise InvalidModelInputError(
            f"decays and rates have shapes {tuple(log_decay.shape)} and {tuple(rate.shape)}, "
            f"expected {tuple(tokens)}"
        )
    if q.shape[0] == 0 or q.shape[1] == 0:
        raise InvalidModelInputError(f"q is empty: shape {tuple(q.shape)}")
    if packed is not None and q.shape[0] != 1:
        raise InvalidModelInputError(
            f"cu_seqlens with a batch of {q.shape[0]} rows", hint="Pack all documents into one row."
        )
    num_states = q.shape[0] if packed is None else packed.num_documents
    expected = (num_states, q.shape[2], q.shape[3], v.shape[3])
    if initial_state is not None and initial_state.shape != expected:
        raise InvalidModelInputError(
            f"initial_state has shape {tuple(initial_state.shape)}, expected {expected}"
        )
