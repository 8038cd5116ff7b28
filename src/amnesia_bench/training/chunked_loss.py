"""Cross-entropy and KL divergence over a large vocabulary, without the logits in memory.

The head is applied to a few rows at a time. Their logits give the loss and, in place, its
gradient, which is folded into the gradients of the hidden states and of the head right away;
backward only scales them.

Shapes: N positions, R rows of a chunk, M hidden size, M' the teacher's, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# (slice of the N rows, their logits [R, V]) -> sum of their losses, gradient of it [R, V]
_Loss = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


def chunked_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, rows: int) -> Tensor:
    """Return the sum over positions of -log softmax(head hidden)[target], a scalar.

    Args:
        hidden: [N, M].
        head: [V, M].
        targets: token ids [N].
        rows: positions at a time.

    Returns:
        In float32 (float64 for float64 inputs), whatever the dtype of `hidden`.
    """

    def loss(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        index = targets[chunk, None]
        log_normaliser = logits.logsumexp(dim=-1, keepdim=True)
        total = (log_normaliser - logits.gather(1, index)).sum()
        gradient = logits.sub_(log_normaliser).exp_()
        gradient.scatter_add_(1, index, gradient.new_full(index.shape, -1.0))
        return total, gradient

    return _summed(hidden, head, loss, rows)


def chunked_kl(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    rows: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the sum over positions of KL(teacher || student), a scalar.

    Args:
        student: hidden states [N, M] and head [V, M].
        teacher: hidden states [N, M'] and head [V, M']; they get no gradient.
        rows: positions at a time.
        dtype: of the log-softmax and of the running sum. Anything below float32 loses much.
    """
    their_hidden, their_head = (x.detach() for x in teacher)

    def loss(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        precise = torch.float64 if logits.dtype == torch.float64 else dtype
        theirs = (their_hidden[chunk] @ their_head.mT).to(precise).log_softmax(dim=-1)
        ours = logits.to(precise).log_softmax(dim=-1)
        probability = theirs.exp()
        total = (probability * (theirs - ours)).sum()
        return total, ours.exp_().sub_(probability)

    return _summed(*student, loss, rows)


def _summed(hidden: Tensor, head: Tensor, loss: _Loss, rows: int) -> Tensor:
    function: Any = _ChunkedLoss
    total: Tensor = function.apply(hidden, head, loss, rows)
    return total


class _ChunkedLoss(torch.autograd.Function):
    """Sum a loss over chunks of rows; both gradients are made in forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, loss: _Loss, rows: int) -> Tensor:
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total: Tensor | None = None
        d_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        # Float32 even for a bfloat16 head: hundreds of chunks are added up.
        d_head = torch.zeros_like(head, dtype=precise) if ctx.needs_input_grad[1] else None
        for start in range(0, hidden.shape[0], rows):
            chunk = slice(start, start + rows)
            of_chunk, gradient = loss(chunk, (hidden[chunk] @ head.mT).to(precise))
            total = of_chunk if total is None else total + of_chunk
            gradient = gradient.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[chunk] = gradient @ head
            if d_head is not None:
                d_head += gradient.mT @ hidden[chunk]
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head.dtype
        return hidden.new_zeros((), dtype=precise) if total is None else total.to(precise)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden, d_head = ctx.saved_tensors
        if d_hidden is not None:
            # The scale is one over a token count: rounded to bfloat16 it would be 0.4 % off.
            d_hidden = (d_hidden.to(scale.dtype) * scale).to(d_hidden.dtype)
        if d_head is not None:
            d_head = (d_head * scale).to(ctx.head_dtype)
        return d_hidden, d_head, None, None
