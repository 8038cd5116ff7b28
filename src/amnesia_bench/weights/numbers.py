"""Convert raw tensor bytes to numpy arrays and back, without torch."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# Dtypes whose values are the weights themselves. Values of narrower dtypes are quantised codes.
FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def decode(data: bytes | memoryview | NDArray[np.uint8], dtype: str) -> Float64:
    """Decode raw bytes of `dtype` to a flat float64 array; this is exact for all FLOAT_DTYPES."""
    with np.errstate(invalid="ignore"):  # NaN is allowed here
        return np.frombuffer(data, dtype=FLOAT_DTYPES[dtype]).astype(np.float64)


def encode(values: Float64, dtype: str) -> bytes:
    """Round each value to the nearest value of `dtype` (ties to even), and return the bytes."""
    if dtype == "BF16":
        # ml_dtypes rounds twice (first to float32), so it may not return the nearest value.
        return _round_to_odd(values).astype(FLOAT_DTYPES[dtype]).tobytes()
    # A value out of range becomes infinity, which the callers refuse, as they refuse NaN.
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(FLOAT_DTYPES[dtype]).tobytes()


def _round_to_odd(values: Float64) -> NDArray[np.float32]:
    """Truncate values to float32, and set the last bit of those that are inexact.

    Rounding the result to at most 22 significant bits gives the same value as rounding the input
    directly (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    """
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    outward = np.abs(nearest.astype(np.float64)) > np.abs(values)
    truncated = np.where(outward, np.nextafter(nearest, np.float32(0)), nearest)
    inexact = (truncated.astype(np.float64) != values) & np.isfinite(values)
    bits = truncated.view(np.uint32) | inexact.astype(np.uint32)
    marked: NDArray[np.float32] = bits.view(np.float32)
    return marked
