"""Muon with a float32 orthogonalisation.

`torch.optim.Muon` orthogonalises in bfloat16. Many CPUs have no instructions for bfloat16: there it
took more than half of the time of a training step of the laptop profile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with Nesterov momentum, whose orthogonalisation is in the matrix's dtype.

    Arguments and state are those of `torch.optim.Muon`; `adjust_lr_fn` must be `match_rms_adamw`.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            assert group["nesterov"]
            assert group["adjust_lr_fn"] == "match_rms_adamw"
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                buffer = self.state[parameter]["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalized(
                    parameter.grad.lerp(buffer, group["momentum"]),
                    group["ns_coefficients"],
                    group["ns_steps"],
                    group["eps"],
                )
                # The size of an update of AdamW (arXiv 2502.16982, section 2.2).
                size = 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * size)


def orthogonalized(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, smallest_norm: float
) -> Tensor:
    """Move the singular values of a matrix close to 1 by Newton-Schulz iterations.

    Args:
        matrix: (rows, columns).
        coefficients: a, b, c of X <- a X + b (X X^T) X + c (X X^T)^2 X.
        steps: the number of iterations.
        smallest_norm: the matrix is divided by its Frobenius norm, or by this if that is smaller.

    Source: Keller Jordan, https://kellerjordan.github.io/posts/muon.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.mT if tall else matrix
    wide = wide / wide.norm().clamp(min=smallest_norm)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if tall else wide
