"""Cross-entropy and KL divergence over a large vocabulary, without all logits in memory.

The head is applied to one chunk of rows at a time. The forward pass computes the loss of the chunk
and its gradient with respect to the logits, and immediately accumulates the gradients of the hidden
states and of the head. The backward pass only scales them.

Shapes: N positions, R rows per chunk, M hidden size, M' the teacher's hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from amnesia_bench.training.heads import Head

# Maps (slice of the N rows, their logits [R, V]) to (sum of their losses, gradient [R, V] of that
# sum with respect to the logits).
_Loss = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


def chunked_cross_entropy(hidden: Tensor, head: Head, targets: Tensor, rows: int) -> Tensor:
    """Return the cross-entropy -log softmax(logits)[target], summed over all positions.

    Args:
        hidden: hidden states [N, M].
        head: maps hidden states to logits.
        targets: token ids [N].
        rows: positions per chunk.

    Returns:
        The sum as a scalar: float64 if `hidden` is float64, and float32 for every other dtype.
    """

    def loss(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        index = targets[chunk, None]
        # On a CPU, log_softmax in float32 is less precise: for 262,144 tokens its error is 5e-5.
        log_normaliser = logits.logsumexp(dim=-1, keepdim=True)
        total = (log_normaliser - logits.gather(1, index)).sum()
        gradient = logits.sub_(log_normaliser).exp_()
        gradient.scatter_add_(1, index, gradient.new_full(index.shape, -1.0))
        return total, gradient

    return _summed(hidden, head, loss, rows)


def chunked_kl(
    student: tuple[Tensor, Head],
    teacher: tuple[Tensor, Head],
    rows: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return KL(teacher || student) as a scalar, summed over all positions.

    Args:
        student: hidden states [N, M] and head.
        teacher: hidden states [N, M'] and head; they receive no gradient.
        rows: positions per chunk.
        dtype: dtype of the log-softmax and of the running sum. A dtype with less precision than
            float32 makes the loss much less accurate.
    """
    teacher_hidden, teacher_head = teacher

    def loss(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        precise = torch.float64 if logits.dtype == torch.float64 else dtype
        with torch.no_grad():
            reference = teacher_head.logits(teacher_hidden[chunk]).to(precise).log_softmax(dim=-1)
        log_probability = logits.to(precise).log_softmax(dim=-1)
        reference_probability = reference.exp()
        total = (reference_probability * (reference - log_probability)).sum()
        return total, log_probability.exp_().sub_(reference_probability)

    return _summed(*student, loss, rows)


def _summed(hidden: Tensor, head: Head, loss: _Loss, rows: int) -> Tensor:
    function: Any = _ChunkedLoss
    # Autograd only differentiates tensor arguments, so weight and bias are passed in addition to
    # the head.
    total: Tensor = function.apply(hidden, head.weight, head.bias, head, loss, rows)
    return total


class _ChunkedLoss(torch.autograd.Function):
    """Sums a loss over chunks of rows; its forward pass also computes all gradients."""

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd needs every tensor as an argument
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        loss: _Loss,
        rows: int,
    ) -> Tensor:
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total: Tensor | None = None
        d_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        # Float32 even for a bfloat16 head, since the gradients of hundreds of chunks are summed.
        d_weight = torch.zeros_like(weight, dtype=precise) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=precise) if ctx.needs_input_grad[2] else None  # type: ignore[arg-type]
        for start in range(0, hidden.shape[0], rows):
            chunk = slice(start, start + rows)
            logits = head.logits(hidden[chunk])
            slope = head.slope(logits)
            chunk_loss, gradient = loss(chunk, logits)
            total = chunk_loss if total is None else total + chunk_loss
            if not isinstance(slope, float) or slope != 1.0:
                gradient = gradient * slope
            if d_bias is not None:
                d_bias += gradient.sum(dim=0)
            gradient = gradient.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[chunk] = gradient @ weight
            if d_weight is not None:
                d_weight += gradient.mT @ hidden[chunk]
            del logits, slope, gradient  # or the next logits would need memory beside these
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return hidden.new_zeros((), dtype=precise) if total is None else total.to(precise)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # The scale is one divided by a token count: rounding it to bfloat16 would cause an
        # error of 0.4 %.
        gradients = (
            None if gradient is None else (gradient.to(scale.dtype) * scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *gradients, None, None, None
