"""Let a GPU compute the same bits in every run, as a CPU does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from amnesia_bench.modeling.numerics import use_exact_float32

_FILLING: Any = torch.utils.deterministic  # its attribute is set through a class, unseen by mypy


def rounding(device: torch.device, *, deterministic: bool) -> AbstractContextManager[None]:
    """Choose how a GPU rounds: exact products of float32, and the same bits in every run or not."""
    use_exact_float32()
    return deterministic_algorithms(device) if deterministic else nullcontext()


@contextmanager
def deterministic_algorithms(device: torch.device) -> Iterator[None]:
    """Use algorithms on a GPU whose results do not depend on the order in which threads finish.

    Otherwise, for example, the backward pass of flash attention adds with atomics. An operation
    without a deterministic algorithm causes a warning that names it. The block must begin before
    the first matrix product, since cuBLAS reads its setting then. On a CPU nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _FILLING.fill_uninitialized_memory,
    )
    # https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling new tensors only helps to find bugs, and costs memory traffic.
    _FILLING.fill_uninitialized_memory = False
    try:
        yield
    finally:
        enabled, warn_only, _FILLING.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
