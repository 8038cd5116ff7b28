"""What the steps of gpu_acceptance.py share: sizes, recorded values, models, kernel configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amnesia_bench.modeling import HypeNetForCausalLM
from amnesia_bench.modeling.named_configs import load_model_config
from bench_engines import word_tokenizer
from bench_train import random_checkpoint

# fla compiles up to 48 configs of each kernel and keeps the fastest: minutes on an empty cache.
# The step's time allows this many. Measured speeds are therefore lower bounds.
KERNEL_CONFIGS = 2


class NotHereError(Exception):
    """The step cannot run on this machine."""


class Values:
    """Records measured values; each is sent at once, so a step that is ended loses none."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send

    def note(self, **values: Any) -> None:
        """Record values that have no limit."""
        self._send({name: {"measured": value} for name, value in values.items()})

    def beside(self, name: str, measured: float, expected: float, source: str) -> None:
        """Record a value next to what was calculated for it, without a limit."""
        self._send({name: {"measured": measured, "expected": expected, "source": source}})

    def at_most(self, name: str, measured: float, limit: float, source: str) -> None:
        """Record a value that must not exceed a limit."""
        row = {"measured": measured, "at_most": limit, "source": source}
        self._send({name: row | {"holds": bool(measured <= limit)}})

    def equal(self, name: str, measured: Any, expected: Any) -> None:
        """Record a value that must have this value."""
        row = {"measured": measured, "expected": expected, "holds": measured == expected}
        self._send({name: row})


@dataclass(frozen=True)
class Setup:
    """The device and the sizes of a run, and the results of its earlier steps by number."""

    device: str
    small: bool
    scratch: Path
    earlier: Mapping[str, Any]

    @property
    def cuda(self) -> bool:
        """Whether the steps run on a GPU."""
        return self.device == "cuda"

    @property
    def size(self) -> str:
        """The name of the HypeNet that is trained and asked."""
        return "tiny" if self.small else "2b"

    def checkpoint(self) -> Path:
        """Return a checkpoint with random weights in bfloat16; it is written on first use."""
        folder = self.scratch / self.size
        if not folder.exists():
            with torch.device(self.device):
                unfinished = random_checkpoint(self.scratch / f"{self.size}.unfinished", self.size)
            unfinished.rename(folder)
        return folder

    def model(self) -> Any:
        """Return a model with random weights in bfloat16 whose answers never end by themselves."""
        config = load_model_config(self.size)
        config.eos_token_id = None
        with torch.device(self.device):
            return HypeNetForCausalLM(config).bfloat16().eval()

    def tokenizer(self) -> Any:
        """Return a tokenizer with one word per token of the model's vocabulary."""
        return word_tokenizer(load_model_config(self.size).vocab_size)


def peak_bytes() -> int:
    """Return the largest number of bytes that PyTorch had allocated on the GPU; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0


def synchronize() -> None:
    """Wait for the GPU, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def keep_few_kernel_configs() -> None:
    """Limit the configs that Triton tries for each kernel; call this before fla is imported."""
    from triton.runtime.autotuner import Autotuner

    original: Any = Autotuner.__init__

    def limited(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        # Few warps with large blocks spill registers, so prefer four warps.
        self.configs.sort(key=lambda config: (abs(config.num_warps - 4), config.num_stages))
        del self.configs[KERNEL_CONFIGS:]

    Autotuner.__init__ = limited
