"""Weights of which each tensor-parallel rank has a part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.utils import set_weight_attrs


def load_part(dim: int) -> Callable[[nn.Parameter, Tensor], None]:
    """Return vLLM's `weight_loader` for a parameter that is split evenly along a dimension."""

    def load(parameter: nn.Parameter, weight: Tensor) -> None:
        size, rank = parameter.shape[dim], get_tensor_model_parallel_rank()
        parameter.data.copy_(weight.narrow(dim, rank * size, size))

    return load


class SplitRMSNorm(nn.Module):
    """The norm x / rms(x) * weight over the channels of all ranks.

    It rounds like the `HypeNetRMSNorm` of `modeling`.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = size, eps
        self.ranks = get_tensor_model_parallel_world_size()
        self.weight = nn.Parameter(torch.ones(size // self.ranks))
        set_weight_attrs(self.weight, {"weight_loader": load_part(0)})

    def forward(self, x: Tensor) -> Tensor:
        """Normalise this rank's channels x [T, size / ranks]."""
        precise = x.float()
        total = precise.pow(2).sum(-1, keepdim=True)
        if self.ranks > 1:
            total = tensor_model_parallel_all_reduce(total)
        precise = precise * torch.rsqrt(total / self.size + self.eps)
        return self.weight * precise.to(x.dtype)
