"""Choose the device of an engine."""

from __future__ import annotations

import torch

from amnesia_bench.errors import UserError


def chosen_device(name: str | None) -> torch.device:
    """Return the named device. Without a name, return a GPU if one is available, else the CPU.

    Raises:
        UserError: the device does not exist.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={name}: {str(error).partition(chr(10))[0]}", hint="Use cpu, cuda or cuda:N."
        ) from error
    return device
