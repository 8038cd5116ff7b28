"""The gated delta rule in plain PyTorch: chunk by chunk, on any device, in float32 or float64.

Within a chunk, the corrections u_i = b_i (v_i - k_i^T S'_i) of its C tokens solve a triangular
system, in which D_ij is the decay from token j to token i, and d_i that from the state S before the
chunk to token i:

    u_i + b_i sum_(j<i) D_ij (k_i . k_j) u_j = b_i (v_i - d_i S^T k_i)

    o_i = scale (d_i S^T q_i + sum_(j<=i) D_ij (q_i . k_j) u_j)

The system is solved for both terms on the right before S is known (the WY form of arXiv
2412.06464), for many chunks with one call. Only the states are computed in a loop over chunks.

Shapes: B batch, T tokens, H heads, K key dim, V value dim, C tokens in a chunk, N chunks.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from .packing import CHUNK, PackedRows

# Chunks whose systems are solved with one call; bounds the memory for their C x C matrices.
_SPAN_CHUNKS = 32


class DeltaInputs(NamedTuple):
    """The operands of the gated delta rule."""

    q: Tensor  # [B, T, H, K]
    k: Tensor  # [B, T, H, K]
    v: Tensor  # [B, T, H, V]
    log_decay: Tensor  # [B, T, H], not positive
    rate: Tensor  # [B, T, H]

    def to(self, dtype: torch.dtype) -> DeltaInputs:
        """Return the operands in a dtype."""
        return DeltaInputs(*(x.to(dtype) for x in self))


def torch_gated_delta(
    inputs: DeltaInputs, scale: float, initial_state: Tensor | None, packed: PackedRows | None
) -> tuple[Tensor, Tensor]:
    """Apply the gated delta rule in PyTorch; all tensors must already have the same dtype.

    The arguments and results are those of `gated_delta_rule`. Documents are processed one after
    another, and the result of each is that of the document alone.
    """
    if packed is None:
        return _sequence(inputs, scale, initial_state)
    outputs, states = [], []
    documents = zip(*(packed.split(x, dim=1) for x in inputs), strict=True)
    for n, document in enumerate(documents):
        state = None if initial_state is None else initial_state[n : n + 1]
        output, state = _sequence(DeltaInputs(*document), scale, state)
        outputs.append(output)
        states.append(state)
    return torch.cat(outputs, dim=1), torch.cat(states, dim=0)


def torch_gated_delta_packed(inputs: DeltaInputs, scale: float, packed: PackedRows) -> Tensor:
    """Return the outputs of packed documents that start without a state.

    They are processed as one sequence, in which the decay to the first token of each document is
    zero. So the work depends on the number of tokens alone, and compiled code is valid for other
    documents.
    """
    token = torch.arange(packed.num_tokens, device=inputs.q.device)
    first = packed.cu_seqlens[packed.document_numbers()] == token
    decay = inputs.log_decay.masked_fill(first[None, :, None], -torch.inf)
    return _sequence(inputs._replace(log_decay=decay), scale, None)[0]


def _sequence(inputs: DeltaInputs, scale: float, state: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, num_tokens, heads, key_dim = inputs.q.shape
    if state is None:
        state = inputs.q.new_zeros(batch, heads, key_dim, inputs.v.shape[3])
    inputs = inputs._replace(q=inputs.q * scale)
    if num_tokens == 1:
        return _one_token(inputs, state)
    full = num_tokens - num_tokens % CHUNK
    bounds = [*range(0, full, CHUNK * _SPAN_CHUNKS), full]
    outputs = []
    spans = [(start, stop, CHUNK) for start, stop in itertools.pairwise(bounds)]
    if full < num_tokens:
        spans.append((full, num_tokens, num_tokens - full))
    for start, stop, chunk in spans:
        span = DeltaInputs(*(x[:, start:stop] for x in inputs))
        output, state = _span(span, state, chunk)
        outputs.append(output)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), state


def _one_token(inputs: DeltaInputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the recurrence to one token; the queries are already scaled."""
    q, k, v = (x.transpose(1, 2) for x in inputs[:3])  # [B, H, 1, D]
    decay, rate = (x.transpose(1, 2)[..., None] for x in inputs[3:])  # [B, H, 1, 1]
    state = state * decay.exp()
    state = state + k.mT @ (rate * (v - k @ state))
    return (q @ state).transpose(1, 2), state


def _span(inputs: DeltaInputs, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Process N chunks of equal size; return the output [B, N * C, H, V] and the last state."""
    q, k, v = (x.unflatten(1, (-1, chunk)).transpose(2, 3) for x in inputs[:3])  # [B, N, H, C, D]
    log_decay, rate = (x.unflatten(1, (-1, chunk)).transpose(2, 3) for x in inputs[3:])
    between = _decays(log_decay)  # [B, N, H, C, C]
    from_state = log_decay.cumsum(dim=-1).exp()[..., None]  # [B, N, H, C, 1]
    to_end = between[..., -1, :, None]
    weights = between * rate[..., None]
    system = (k @ k.mT * weights).tril(-1)  # the solver takes its diagonal as ones
    right = torch.cat([v, k * from_state], dim=-1) * rate[..., None]
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    own, from_past = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    scores = q @ k.mT * between
    outputs = []
    for n in range(q.shape[1]):
        corrections = own[:, n] - from_past[:, n] @ state
        outputs.append((q[:, n] * from_state[:, n]) @ state + scores[:, n] @ corrections)
        whole = from_state[:, n, :, -1:]
        state = state * whole + (k[:, n] * to_end[:, n]).mT @ corrections
    return torch.stack(outputs, dim=1).transpose(2, 3).flatten(1, 2), state


def _decays(log_decay: Tensor) -> Tensor:
    """Return the decay from key j to query i, [..., C, C], zero for later keys.

    Its logarithm is a sum of the decays between the two tokens. The difference of two cumulative
    sums would be faster, but inexact after a token that erases the state.
    """
    chunk = log_decay.shape[-1]
    ones = torch.ones(chunk, chunk, dtype=torch.bool, device=log_decay.device)
    steps = log_decay[..., :, None].expand(*log_decay.shape, chunk)
    sums = steps.masked_fill(~ones.tril(-1), 0.0).cumsum(dim=-2)
    return sums.masked_fill(~ones.tril(), -torch.inf).exp()
