"""Memory of the device: how much is free, and what happens when none is left."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# Other stages and the user's programs need memory too, and Linux ends a process that takes too
# much, without an error that could be caught.
_CPU_SHARE = 0.25
_MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> float:
    """Return the bytes of memory that caches may take on a device.

    On CUDA this is all free memory, with what torch's allocator holds for later. On the CPU it is
    a quarter of the available memory, or of the physical memory where the former is unknown.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + held)
    return _CPU_SHARE * available_cpu_bytes()


def available_cpu_bytes() -> int:
    """Return the available memory of this machine, or the physical one if that is unknown."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if _MEMINFO.exists():
        lines = _MEMINFO.read_text().splitlines()
        kibibytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        available = 1024 * int(kibibytes[0]) if kibibytes else available
    return available


class MemoryExhaustedError(Exception):
    """Memory ran out when the cache contained `fits` tokens per row.

    The engine catches this error and retries with fewer rows. If a single row does not fit, its
    message to the user names a length that does.
    """

    def __init__(self, fits: int) -> None:
        super().__init__(f"out of memory after token {fits:,}")
        self.fits = fits


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch ran out of memory; on the CPU, only the message shows it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def catching_oom(num_tokens: int) -> Iterator[None]:
    """Convert torch's out-of-memory errors in the block to `MemoryExhaustedError(num_tokens)`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryExhaustedError(num_tokens) from error


def release_memory() -> None:
    """Free memory after an error; call this after the `except` block, which keeps tensors alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
