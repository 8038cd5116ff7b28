"""Lightning attention in plain PyTorch: chunk by chunk, on any device, in float32 or float64.

Within a chunk, scores between queries and keys are multiplied by a matrix of decays that is zero
for later keys. Tokens before the chunk contribute through the state at its start (the chunked
algorithm of arXiv 2401.04658).

Shapes: B batch, T tokens, H heads, K key dim, V value dim, D either K or V, C tokens in a chunk,
S chunks in a span.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .packing import CHUNK, PackedRows, split_rows

# With small states, most of the time on a CPU is call overhead. So a span of several chunks is
# processed with one call per product, as long as its states fit into the CPU's cache. According to
# measurements the limit is 1 MB: for larger states, one chunk at a time is faster.
_SPAN_STATE_NUMBERS = 2**18
_MAX_SPAN = 16

Qkv = tuple[Tensor, Tensor, Tensor]


def torch_lightning(
    qkv: Qkv,
    log_decay: Tensor,
    scale: float,
    initial_state: Tensor | None,
    packed: PackedRows | None,
) -> tuple[Tensor, Tensor]:
    """Apply lightning attention in PyTorch; all tensors must already have the same dtype.

    The arguments and results are those of `lightning_attention`. Documents are processed one after
    another, and the result of each is bit-identical to that of the document alone.
    """
    if packed is None:
        return _chunked(qkv, log_decay, scale, initial_state)
    outputs, states = [], []
    documents = zip(*(packed.split(x, dim=1) for x in qkv), strict=True)
    for n, (q, k, v) in enumerate(documents):
        state = None if initial_state is None else initial_state[n : n + 1]
        output, state = _chunked((q, k, v), log_decay, scale, state)
        outputs.append(output)
        states.append(state)
    return torch.cat(outputs, dim=1), torch.cat(states, dim=0)


def torch_lightning_backward(
    grads: tuple[Tensor, Tensor | None],
    qkv: Qkv,
    log_decay: Tensor,
    scale: float,
    initial_state: Tensor | None,
    packed: PackedRows | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and of the initial state, without autograd.

    Each gradient is lightning attention again, with other operands. For gradients do of the outputs
    and dS_T of the last state:

        dq_t = scale * (sum over s <= t of gamma^(t-s) k_s (v_s . do_t) + gamma^t S_0 do_t)
        dk_t = sum over s >= t of gamma^(s-t) q_s scale (do_s . v_t) + gamma^(T-t) dS_T v_t
        dv_t = sum over s >= t of gamma^(s-t) do_s scale (q_s . k_t) + gamma^(T-t) dS_T^T k_t

    The last two run backwards in time. The arguments are those of `torch_lightning`; `grads` are
    the gradients of its results.
    """
    (grad, grad_end), (q, k, v) = grads, qkv
    bounds = None if packed is None else [packed.num_tokens - x for x in reversed(packed.bounds)]
    flipped = None if bounds is None else PackedRows.from_bounds(tuple(bounds), q.device)
    # Packed documents change places when the row is reversed.
    order = [0] if packed is not None else []
    backward_state = None
    if grad_end is not None:
        # At the last token, dS_T has not decayed yet, and it has no scale.
        undo = torch.exp(-log_decay)[:, None, None] / scale
        backward_state = (grad_end * undo).flip(order)
    initial = None if initial_state is None else initial_state.mT
    dq, _ = torch_lightning((grad, v, k), log_decay, scale, initial, packed)
    q, k, v, grad = (x.flip(1) for x in (q, k, v, grad))
    dv, end = torch_lightning((k, q, grad), log_decay, scale, backward_state, flipped)
    backward_state = None if backward_state is None else backward_state.mT
    dk, _ = torch_lightning((v, grad, q), log_decay, scale, backward_state, flipped)
    grad_initial = (end * log_decay.exp()[:, None, None] * scale).flip(order)
    return dq, dk.flip(1), dv.flip(1), grad_initial


@dataclass(frozen=True)
class _Decays:
    """Decay factors in a chunk of C tokens for each row and head; those on q include the scale."""

    inside: Tensor  # [B * H, C, C]: from key j to query i; zero for j > i
    from_state: Tensor  # [B * H, C, 1]: from the state before the chunk to query i
    to_end: Tensor  # [B * H, C, 1]: from key j to the state after the chunk
    whole: Tensor  # [B * H, 1, 1]: from the state before the chunk to the state after it

    @classmethod
    def of(cls, log_decay: Tensor, scale: float, chunk: int) -> _Decays:
        step = torch.arange(chunk, device=log_decay.device, dtype=log_decay.dtype)
        gap = step[:, None] - step[None, :]
        rate = log_decay[:, None, None]
        # The gap is clamped because the unused upper triangle would overflow in the exponential.
        return cls(
            inside=torch.exp(rate * gap.clamp(min=0)) * (gap >= 0) * scale,
            from_state=torch.exp(rate * (step[:, None] + 1)) * scale,
            to_end=torch.exp(rate * (chunk - 1 - step[:, None])),
            whole=torch.exp(rate * chunk),
        )


def _chunked(
    qkv: Qkv, log_decay: Tensor, scale: float, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    q, k, v = qkv
    batch, num_tokens, heads, key_dim = q.shape
    if state is None:
        state = q.new_zeros(batch, heads, key_dim, v.shape[3])
    rows = log_decay.repeat(batch)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, log_decay, state)):
        plan = _chunk_plan(rows, scale, 0, num_tokens)
        output, end = _chunks_recorded(qkv, plan, state.flatten(0, 1))
        return output, end.unflatten(0, (batch, heads))
    if num_tokens == 1:
        return _one_token(qkv, log_decay, scale, state)
    state = state.clone(memory_format=torch.contiguous_format)
    output = torch.empty_like(v, memory_format=torch.contiguous_format)
    span = min(_MAX_SPAN, _SPAN_STATE_NUMBERS // state.numel())
    done = 0
    if span > 1:
        done = num_tokens - num_tokens % CHUNK
        decays = _Decays.of(log_decay, scale, CHUNK)
        for start in range(0, done, span * CHUNK):
            part = slice(start, min(start + span * CHUNK, done))
            _span_in_place(tuple(x[:, part] for x in qkv), decays, state, output[:, part])
    plan = _chunk_plan(rows, scale, done, num_tokens)
    _chunks_in_place(qkv, plan, state.flatten(0, 1), output)
    return output, state


def _one_token(qkv: Qkv, log_decay: Tensor, scale: float, state: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the recurrence to one token, with a tenth of the PyTorch calls of a one-token chunk."""
    q, k, v = (x.transpose(1, 2) for x in qkv)  # [B, H, 1, D]
    state = torch.addcmul(state * log_decay.exp()[:, None, None], k.mT, v)
    return ((q * scale) @ state).transpose(1, 2), state


def _chunk_plan(
    log_decay: Tensor, scale: float, start: int, stop: int
) -> Iterator[tuple[slice, _Decays]]:
    """Yield the token range and the decays of each chunk: all full chunks, then the remainder."""
    full = stop - (stop - start) % CHUNK
    if start < full:
        decays = _Decays.of(log_decay, scale, CHUNK)
        for first in range(start, full, CHUNK):
            yield slice(first, first + CHUNK), decays
    if full < stop:
        yield slice(full, stop), _Decays.of(log_decay, scale, stop - full)


def _chunks_recorded(
    qkv: Qkv, plan: Iterator[tuple[slice, _Decays]], state: Tensor
) -> tuple[Tensor, Tensor]:
    """Process the chunks with autograd; return the output [B, T, H, V] and the last state.

    `state` and the returned state are [B * H, K, V].
    """
    batch = qkv[0].shape[0]
    outputs = []
    chunks = list(plan)
    tokens = [part.stop - part.start for part, _ in chunks]
    parts = zip(*(split_rows(x, tokens, dim=1) for x in qkv), strict=True)
    for (_, decays), chunk_qkv in zip(chunks, parts, strict=True):
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in chunk_qkv)  # [B * H, C, D]
        scores = torch.bmm(q, k.mT) * decays.inside
        output = torch.baddbmm(torch.bmm(q, state) * decays.from_state, scores, v)
        outputs.append(output.unflatten(0, (batch, -1)).transpose(1, 2))
        state = torch.baddbmm(state * decays.whole, (k * decays.to_end).mT, v)
    return torch.cat(outputs, dim=1), state


def _chunks_in_place(
    qkv: Qkv, plan: Iterator[tuple[slice, _Decays]], state: Tensor, output: Tensor
) -> None:
    """Process the chunks in place, without autograd.

    It writes `output` [B, T, H, V], and updates `state` [B * H, K, V] to the state after the last
    chunk. Less memory traffic makes it a third faster than `_chunks_recorded`.
    """
    batch, heads = qkv[0].shape[0], qkv[0].shape[2]
    for part, decays in plan:
        q, k, v = (x[:, part].transpose(1, 2).flatten(0, 1) for x in qkv)
        scores = torch.bmm(q, k.mT).mul_(decays.inside)
        mixed = torch.bmm(q, state).mul_(decays.from_state).baddbmm_(scores, v)
        output[:, part].transpose(1, 2).copy_(mixed.view(batch, heads, *mixed.shape[1:]))
        state.mul_(decays.whole).baddbmm_((k * decays.to_end).mT, v)


def _span_in_place(qkv: tuple[Tensor, ...], decays: _Decays, state: Tensor, output: Tensor) -> None:
    """Process S full chunks with one call per product; only the states are computed in a loop.

    `qkv` are q, k, v [B, S * C, H, D], and `decays` are those of H heads. The function writes
    `output` [B, S * C, H, V], and updates `state` [B, H, K, V] to the state after the last chunk.
    """
    q, k, v = (x.unflatten(1, (-1, CHUNK)).transpose(2, 3).contiguous() for x in qkv)
    added = (k * decays.to_end).mT @ v  # [B, S, H, K, V]
    starts = torch.empty_like(added)
    for chunk in range(added.shape[1]):
        starts[:, chunk] = state
        state.mul_(decays.whole).add_(added[:, chunk])
    scores = (q @ k.mT).mul_(decays.inside)
    mixed = (q @ starts).mul_(decays.from_state)
    mixed.flatten(0, 2).baddbmm_(scores.flatten(0, 2), v.flatten(0, 2))
    output.unflatten(1, (-1, CHUNK)).transpose(2, 3).copy_(mixed)
