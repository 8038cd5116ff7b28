"""Lightning attention: linear attention with one fixed decay per head.

Per head, with gamma = exp(log_decay):

    S_t = gamma * S_(t-1) + k_t v_t^T        o_t = scale * q_t^T S_t

There is no feature map and no denominator. Source: HypeNet, arXiv 2601.22156. The chunked algorithm
is that of Lightning Attention-2 (arXiv 2401.04658) and of simple_gla in fla.

Shapes: B batch, T tokens, H heads, K key dim, V value dim, N documents, C chunk.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from .input_errors import InvalidModelInputError
from .lightning_op import lightning_by_op
from .lightning_torch import torch_lightning
from .packing import Boundaries, PackedRows

# Known at import, so that a compiled graph does not search for a package. This does not import fla,
# which would take seconds.
_FLA_IS_INSTALLED = importlib.util.find_spec("fla") is not None
_op_on_every_device = False


def alibi_log_decay(num_heads: int) -> Tensor:
    """Return log gamma per head, [H] in float32; it is minus the ALiBi slope in every layer.

    If H is a power of two, the slopes are the geometric series 2^(-8 (h + 1) / H). Otherwise they
    are the series for the next lower power of two, followed by every other slope of the series for
    twice that power (Press et al., arXiv 2108.12409, footnote on head counts).
    """
    lower = 2 ** (num_heads.bit_length() - 1)
    slopes = _geometric_slopes(lower)
    slopes += _geometric_slopes(2 * lower)[0::2][: num_heads - lower]
    return -torch.tensor(slopes, dtype=torch.float32)


def _geometric_slopes(num_heads: int) -> list[float]:
    return [math.pow(2.0, -8.0 * (head + 1) / num_heads) for head in range(num_heads)]


def lightning_attention(  # noqa: PLR0913 - the operation has these operands; records would hide it
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Boundaries | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply lightning attention to a batch of sequences.

    On CUDA this function calls fla's kernels, as one op, if fla is installed; otherwise, and for
    float64, it uses plain PyTorch. It chooses at each call, and autocast does not affect it.

    States are float32 (float64 for float64 inputs), and so is the arithmetic in PyTorch. fla's
    kernels multiply bfloat16 operands as bfloat16 numbers, with sums in float32, and others as
    float32 numbers without TF32.

    Args:
        q: queries [B, T, H, K].
        k: keys [B, T, H, K].
        v: values [B, T, H, V].
        log_decay: log gamma per head [H], not positive.
        scale: factor on q; K^-1/2 when None.
        initial_state: state before the first token [B, H, K, V], or [N, H, K, V] with
            `cu_seqlens`; zero when None.
        cu_seqlens: boundaries, from 0 to T, of N documents that are packed in one row (B = 1). Each
            document starts from a separate initial state.

    Returns:
        The outputs [B, T, H, V] in the dtype of q, and the state [B or N, H, K, V] after the last
        token of each row or document.

    Raises:
        InvalidModelInputError: the shapes do not match, or the boundaries do not increase from 0
            to T.
    """
    _check_shapes(q, k, v, log_decay)
    if cu_seqlens is not None:
        cu_seqlens = PackedRows.from_cu_seqlens(cu_seqlens, q.shape[1], q.device)
    _check_states(q, v, initial_state, cu_seqlens)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    # Compiled code calls the op on a CPU too. Otherwise, loops over documents and chunks would be
    # unrolled, and compiled for each batch again.
    can_use_op = _FLA_IS_INSTALLED if q.is_cuda else torch.compiler.is_compiling()
    by_op = q.dtype != torch.float64 and (_op_on_every_device or can_use_op)
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
    operand_dtype = torch.bfloat16 if by_op and q.dtype == torch.bfloat16 else precise
    if q.is_cuda and not by_op and not torch.compiler.is_compiling():
        linear_backend(q.device)
    with torch.autocast(q.device.type, enabled=False):
        qkv = q.to(operand_dtype), k.to(operand_dtype), v.to(operand_dtype)
        state = None if initial_state is None else initial_state.to(precise)
        run = lightning_by_op if by_op else torch_lightning
        output, state = run(qkv, log_decay.to(precise), scale, state, cu_seqlens)
    return output.to(q.dtype), state


def fla_is_installed() -> bool:
    """Return whether fla is installed."""
    return _FLA_IS_INSTALLED


def linear_backend(device: torch.device) -> str:
    """Return what computes linear layers on a device: "fla VERSION" or "torch".

    On CUDA without fla, this warns once per process.
    """
    if device.type != "cuda":
        return "torch"
    if _FLA_IS_INSTALLED:
        return f"fla {importlib.metadata.version('fla-core')}"
    _warn_that_fla_is_missing()
    return "torch"


@functools.cache
def _warn_that_fla_is_missing() -> None:
    # By counting: a layer of the 9B model, 16,384 tokens, forward and backward.
    warnings.warn(
        "flash-linear-attention is not installed: linear layers run on the GPU as a loop in "
        "PyTorch. Lightning attention, for example, then launches about 6,700 kernels per layer "
        "and 16,384 tokens of training instead of 12. Install it: "
        "pip install flash-linear-attention==0.6.0",
        stacklevel=2,
    )


def fla_ops_are_used_everywhere() -> bool:
    """Return whether this is the context `fla_ops_on_every_device`."""
    return _op_on_every_device


@contextlib.contextmanager
def fla_ops_on_every_device() -> Iterator[None]:
    """Use the ops of fla's kernels on every device, also where fla or a GPU is missing.

    On fake tensors the ops compute only shapes, and on a CPU lightning attention computes in
    PyTorch. So what is compiled, or run on fake tensors, within this context is what would run on
    CUDA.
    """
    global _op_on_every_device
    before, _op_on_every_device = _op_on_every_device, True
    try:
        yield
    finally:
        _op_on_every_device = before


def _check_states(
    q: Tensor, v: Tensor, initial_state: Tensor | None, packed: PackedRows | None
) -> None:
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


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> None:
    if q.ndim != 4 or k.shape != q.shape or v.shape[:3] != q.shape[:3]:
        raise InvalidModelInputError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}",
            hint="Expected [B, T, H, K] for q and k, and [B, T, H, V] for v.",
        )
    if q.shape[0] == 0 or q.shape[1] == 0:
        raise InvalidModelInputError(f"q is empty: shape {tuple(q.shape)}")
    if log_decay.shape != q.shape[2:3]:
        raise InvalidModelInputError(
            f"log_decay has shape {tuple(log_decay.shape)}, but q has {q.shape[2]} heads"
        )
