"""Telling that memory ran out, and how far it reached, from all other failures."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class MemoryExhaustedError(Exception):
    """Memory ran out; `fits` tokens were in the cache before.

    Caught inside the engine: fewer rows may fit, and a message must name the length that does.
    """

    def __init__(self, fits: int) -> None:
        super().__init__(f"out of memory behind token {fits:,}")
        self.fits = fits


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says so; the CPU's allocator has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def reaching(num_tokens: int) -> Iterator[None]:
    """Turn torch's errors about memory into a `MemoryExhaustedError` behind `num_tokens`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryExhaustedError(num_tokens) from error


def release_memory() -> None:
    """Give back what failed work left. Call it outside of the handler, which still holds that."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
