"""The dtype of sums and states."""

from __future__ import annotations

import torch


def precise_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which values of a dtype are summed: float64 for itself, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
