"""Keep transformers' own models from calling fla's kernels on a CPU."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def pytorch_forms_on_cpu(device: torch.device | None = None) -> Iterator[None]:
    """Within this context, a model that transformers builds for a CPU computes in PyTorch.

    If fla is installed, transformers' Qwen3-Next, OLMo-hybrid and others choose its kernels when
    their code is imported, whatever the device, and then every forward pass on a CPU fails. So fla
    cannot be imported in this context. The choice lasts as long as the process.

    Args:
        device: where the model will run; None for a GPU if there is one.
    """
    on_cpu = not torch.cuda.is_available() if device is None else device.type == "cpu"
    if not on_cpu:
        yield
        return
    modules: dict[str, Any] = sys.modules
    before = {name: modules[name] for name in ("fla",) if name in modules}
    modules["fla"] = None  # None instead of a module bars its import
    try:
        yield
    finally:
        del modules["fla"]
        modules.update(before)
