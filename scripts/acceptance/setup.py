"""What the steps of gpu_acceptance.py share: sizes, recorded values, models, older PyTorch."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

from amnesia_bench.modeling import HypeNetForCausalLM, causal_attention, lightning_fla
from amnesia_bench.modeling.named_configs import load_model_config
from bench_engines import word_tokenizer
from bench_train import random_checkpoint


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

    def measured(self, step: str, name: str) -> Any:
        """Return a value that an earlier step measured; None if that step did not come so far."""
        return self.earlier.get(step, {}).get("values", {}).get(name, {}).get("measured")

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


def support_older_torch() -> None:
    """Give `varlen_attn` of torch 2.11 and 2.12 the argument `enable_gqa` of torch 2.13."""
    original = causal_attention.varlen_attn
    if "enable_gqa" in inspect.signature(original).parameters:
        return

    def with_gqa(q: Any, k: Any, v: Any, *args: Any, enable_gqa: bool, **kwargs: Any) -> Any:
        if enable_gqa:
            repeats = q.shape[1] // k.shape[1]
            k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
        return original(q, k, v, *args, **kwargs)

    causal_attention.varlen_attn = with_gqa


def support_older_triton() -> None:
    """Use tiles of 32 with the Triton of torch 2.11 and 2.12: see `_TILINGS` on wrong gradients."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return
    if Version(version) < Version("3.7.1"):
        tilings = lightning_fla._TILINGS
        tilings[torch.bfloat16] = replace(tilings[torch.bfloat16], largest=32)
