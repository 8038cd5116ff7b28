"""Lightning attention: linear attention with one fixed decay per head.

Per head, with gamma = exp(log_decay):

    S_t = gamma * S_(t-1) + k_t v_t^T        o_t = scale * q_t^T S_t

No feature map and no denominator. Source: HypeNet, arXiv 2601.22156; the chunked form is the
usual one of Lightning Attention-2 (arXiv 2401.04658) and of fla's simple_gla.

Shapes: B batch, T tokens, H heads, K key dim, V value dim, N documents, C chunk.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .input_errors import InvalidModelInputError
from .packing import Boundaries, PackedRows

# fla's kernels are tuned for 64; on a CPU 64 beat 32, 128 and 256 at H=16, K=V=128.
CHUNK = 64


def alibi_log_decay(num_heads: int) -> Tensor:
    """Return log gamma per head, [H] float32: minus the ALiBi slopes, the same in every layer.

    For a power of two the slopes are the geometric series 2^(-8 (h + 1) / H). Otherwise ALiBi
    takes the series of the next lower power of two and fills up with every other slope of the
    series of twice that size (Press et al., arXiv 2108.12409, footnote on head counts).
    """
    lower = 2 ** (num_heads.bit_length() - 1)
    slopes = _geometric_slopes(lower)
    slopes += _geometric_slopes(2 * lower)[0::2][: num_heads - lower]
    return -torch.tensor(slopes, dtype=torch.float32, device="cpu")


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
    """Run the recurrence over a sequence, chunk by chunk.

    On CUDA fla's kernels do the work where fla is installed; anywhere else, and for float64,
    plain PyTorch does. The choice is made at each call. The arithmetic and the state are float32
    (float64 for float64 inputs), also under autocast.

    Args:
        q: queries [B, T, H, K].
        k: keys [B, T, H, K].
        v: values [B, T, H, V].
        log_decay: log gamma per head [H], not positive.
        scale: factor on q; K^-1/2 when None.
        initial_state: state before the first token [B, H, K, V], or [N, H, K, V] with
            `cu_seqlens`; zero when None.
        cu_seqlens: boundaries of N documents packed in one row (B = 1), from 0 to T. Each
            document starts from its own initial state.

    Returns:
        The outputs [B, T, H, V] in q's dtype, and the state after the last token of each row or
        document, [B or N, H, K, V].

    Raises:
        InvalidModelInputError: shapes that do not fit, or boundaries that do not increase from
            0 to T.
    """
    _check_shapes(q, k, v, log_decay)
    if cu_seqlens is not None and not isinstance(cu_seqlens, PackedRows):
        cu_seqlens = PackedRows.from_cu_seqlens(cu_seqlens, q.shape[1], q.device)
    _check_states(q, v, initial_state, cu_seqlens)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
    with torch.autocast(q.device.type, enabled=False):
        queries, keys, values, decay = (x.to(precise) for x in (q, k, v, log_decay))
        state = None if initial_state is None else initial_state.to(precise)
        if q.is_cuda and precise == torch.float32 and fla_is_installed():
            from .lightning_fla import fla_lightning

            output, state = fla_lightning((queries, keys, values), decay, scale, state, cu_seqlens)
        else:
            output, state = torch_lightning(
                (queries, keys, values), decay, scale, state, cu_seqlens
            )
    return output.to(q.dtype), state


@functools.cache
def fla_is_installed() -> bool:
    """Look for flash-linear-attention without importing it: its import takes seconds."""
    return importlib.util.find_spec("fla") is not None


def torch_lightning(
    qkv: tuple[Tensor, Tensor, Tensor],
    log_decay: Tensor,
    scale: float,
    initial_state: Tensor | None,
    packed: PackedRows | None,
) -> tuple[Tensor, Tensor]:
    """Chunked PyTorch back end; operands as in `lightning_attention`, already in one dtype.

    Documents run one after another, each exactly as if it were alone: same bits.
    """
    if packed is None:
        return _chunked(qkv, log_decay, scale, initial_state)
    outputs, states = [], []
    for n, (start, stop) in enumerate(packed.documents):
        state = None if initial_state is None else initial_state[n : n + 1]
        document = tuple(x[:, start:stop] for x in qkv)
        output, state = _chunked((document[0], document[1], document[2]), log_decay, scale, state)
        outputs.append(output)
        states.append(state)
    return torch.cat(outputs, dim=1), torch.cat(states, dim=0)


@dataclass(frozen=True)
class _Decays:
    """Decays inside a chunk of C tokens, per row and head; the scale is in those on q's side."""

    inside: Tensor  # [B * H, C, C]: from key j to query i, zero for j > i
    from_state: Tensor  # [B * H, C, 1]: from the state before the chunk to query i
    to_end: Tensor  # [B * H, C, 1]: from key j to the state after the chunk
    whole: Tensor  # [B * H, 1, 1]: over all of the chunk

    @classmethod
    def of(cls, log_decay: Tensor, scale: float, chunk: int) -> _Decays:
        step = torch.arange(chunk, device=log_decay.device, dtype=log_decay.dtype)
        gap = step[:, None] - step[None, :]
        rate = log_decay[:, None, None]
        # Clamped before the exponential: the unused upper triangle would overflow for long gaps.
        return cls(
            inside=torch.exp(rate * gap.clamp(min=0)) * (gap >= 0) * scale,
            from_state=torch.exp(rate * (step[:, None] + 1)) * scale,
            to_end=torch.exp(rate * (chunk - 1 - step[:, None])),
            whole=torch.exp(rate * chunk),
        )


def _chunk_plan(
    log_decay: Tensor, scale: float, num_tokens: int
) -> Iterator[tuple[slice, _Decays]]:
    """Yield the tokens of each chunk with its decays: full chunks, then what is left."""
    full = num_tokens - num_tokens % CHUNK
    if full:
        decays = _Decays.of(log_decay, scale, CHUNK)
        for start in range(0, full, CHUNK):
            yield slice(start, start + CHUNK), decays
    if full < num_tokens:
        yield slice(full, num_tokens), _Decays.of(log_decay, scale, num_tokens - full)


def _chunked(
    qkv: tuple[Tensor, Tensor, Tensor], log_decay: Tensor, scale: float, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    q, k, v = qkv
    batch, num_tokens, heads, key_dim = q.shape
    plan = _chunk_plan(log_decay.repeat(batch), scale, num_tokens)
    start = q.new_zeros(batch, heads, key_dim, v.shape[3]) if state is None else state
    operands = (q, k, v, log_decay, start)
    record = torch.is_grad_enabled() and any(x.requires_grad for x in operands)
    run = _chunks_recorded if record else _chunks_in_place
    output, end = run((q, k, v), plan, start.flatten(0, 1))
    return output, end.unflatten(0, (batch, heads))


def _chunks_recorded(
    qkv: tuple[Tensor, Tensor, Tensor], plan: Iterator[tuple[slice, _Decays]], state: Tensor
) -> tuple[Tensor, Tensor]:
    """The chunks, for autograd; state [B * H, K, V]."""
    batch = qkv[0].shape[0]
    outputs = []
    for part, decays in plan:
        q, k, v = (x[:, part].transpose(1, 2).flatten(0, 1) for x in qkv)  # [B * H, C, D]
        scores = torch.bmm(q, k.mT) * decays.inside
        output = torch.baddbmm(torch.bmm(q, state) * decays.from_state, scores, v)
        outputs.append(output.unflatten(0, (batch, -1)).transpose(1, 2))
        state = torch.baddbmm(state * decays.whole, (k * decays.to_end).mT, v)
    return torch.cat(outputs, dim=1), state


def _chunks_in_place(
    qkv: tuple[Tensor, Tensor, Tensor], plan: Iterator[tuple[slice, _Decays]], state: Tensor
) -> tuple[Tensor, Tensor]:
    """The same products without autograd: a third less time, all of it memory traffic."""
    batch, heads = qkv[0].shape[0], qkv[0].shape[2]
    state = state.clone()
    output = torch.empty_like(qkv[2], memory_format=torch.contiguous_format)
    for part, decays in plan:
        q, k, v = (x[:, part].transpose(1, 2).flatten(0, 1) for x in qkv)
        scores = torch.bmm(q, k.mT).mul_(decays.inside)
        mixed = torch.bmm(q, state).mul_(decays.from_state).baddbmm_(scores, v)
        output[:, part].transpose(1, 2).copy_(mixed.view(batch, heads, *mixed.shape[1:]))
        state.mul_(decays.whole).baddbmm_((k * decays.to_end).mT, v)
    return output, state


def _check_states(
    q: Tensor, v: Tensor, initial_state: Tensor | None, packed: PackedRows | None
) -> None:
    if packed is not None and q.shape[0] != 1:
        raise InvalidModelInputError(
            f"cu_seqlens with a batch of {q.shape[0]} rows", hint="Pack all documents into one row."
        )
    num_states = q.shape[0] if packed is None else len(packed.documents)
    expected = (num_states, q.shape[2], q.shape[3], v.shape[3])
    if initial_state is not None and initial_state.shape != expected:
        raise InvalidModelInputError(
            f"initial_state has shape {tuple(initial_state.shape)}, expected {expected}"
        )


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> None:
    if q.ndim != 4 or k.shape != q.shape or v.shape[:3] != q.shape[:3]:
        raise InvalidModelInputError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}",
            hint="Expected [B, T, H, K], the same, and [B, T, H, V].",
        )
    if q.shape[0] == 0 or q.shape[1] == 0:
        raise InvalidModelInputError(f"q is empty: shape {tuple(q.shape)}")
    if log_decay.shape != q.shape[2:3]:
        raise InvalidModelInputError(
            f"log_decay has shape {tuple(log_decay.shape)}, q has {q.shape[2]} heads"
        )
