"""Versions and rates of the machine, lightning attention, and the whole model in float32.

Shapes: B batch, T tokens, H heads, D head dim.
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from acceptance.setup import Setup, Values, synchronize
from amnesia_bench.inference.language_model import prepare_model
from amnesia_bench.modeling import (
    HypeNetForCausalLM,
    alibi_log_decay,
    lightning_attention,
    lightning_fla,
)
from amnesia_bench.modeling.lightning_torch import torch_lightning
from amnesia_bench.modeling.named_configs import load_model_config
from amnesia_bench.modeling.numerics import use_exact_float32
from amnesia_bench.modeling.packing import PackedRows

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "hypenet_tiny"
PACKAGES = ("torch", "triton", "transformers", "fla-core", "flash-linear-attention", "numpy")


def versions_and_rates(setup: Setup, values: Values) -> None:
    """Record versions, and the rates of a matrix product and of a copy; write the checkpoint."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    values.note(python=sys.version.split()[0], packages=found, cuda=str(torch.version.cuda))
    if setup.cuda:
        values.note(
            gpu=torch.cuda.get_device_name(),
            capability=list(torch.cuda.get_device_capability()),
            memory_gb=torch.cuda.get_device_properties(0).total_memory / 1e9,
        )
    side = 512 if setup.small else 8192
    left, right = torch.randn(2, side, side, device=setup.device).bfloat16()
    milliseconds = _milliseconds(setup, lambda: left @ right)
    values.note(bf16_matmul_tflops=2 * side**3 / milliseconds / 1e9)
    source = torch.empty(2**20 if setup.small else 2**32, dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    milliseconds = _milliseconds(setup, lambda: target.copy_(source))
    values.note(copy_tb_per_s=2 * source.numel() / milliseconds / 1e9)
    setup.checkpoint()


def _milliseconds(setup: Setup, call: Any) -> float:
    """Return the milliseconds of a call, the mean of ten after three."""
    for i in range(13):
        if i == 3:
            synchronize()
            started = time.perf_counter()
        call()
    synchronize()
    return (time.perf_counter() - started) * 100


def lightning_kernels(setup: Setup, values: Values) -> None:
    """Compare lightning attention with float64, forward and backward, alone and packed."""
    values.note(bfloat16_tile=lightning_fla._TILINGS[torch.bfloat16].largest)
    tokens, heads, size = (130, 2, 16) if setup.small else (2048, 16, 128)
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for bounds in (None, [0, tokens // 3 + 1, tokens]):
            kind = f"{'' if bounds is None else 'packed '}{str(dtype).removeprefix('torch.')}"
            errors = _errors(setup.device, dtype, bounds, (tokens, heads, size))
            for name, error in errors.items():
                values.at_most(f"{kind} {name}", error, limit, "relative norm, to float64")


def _errors(
    device: str, dtype: torch.dtype, bounds: list[int] | None, shape: tuple[int, int, int]
) -> dict[str, float]:
    """Return the relative norms of the errors of outputs, states and gradients."""
    tokens, heads, size = shape
    generator = torch.Generator().manual_seed(0)
    q, k, v, upstream = (
        torch.randn(1, tokens, heads, size, generator=generator).to(device, dtype) for _ in range(4)
    )
    q, k, v = (torch.nn.functional.normalize(x, dim=-1).requires_grad_() for x in (q, k, v))
    decay = alibi_log_decay(heads).to(device)
    output, state = lightning_attention(q, k, v, decay, cu_seqlens=bounds)
    gradients = torch.autograd.grad(output, (q, k, v), upstream)
    exact = tuple(x.detach().double().requires_grad_() for x in (q, k, v))
    rows = None if bounds is None else PackedRows.from_cu_seqlens(bounds, tokens, q.device)
    reference, end = torch_lightning(exact, decay.double(), size**-0.5, None, rows)
    expected = torch.autograd.grad(reference, exact, upstream.double())
    pairs = {"output": (output, reference), "state": (state, end)}
    pairs |= {f"d{n}": pair for n, *pair in zip("qkv", gradients, expected, strict=True)}
    return {name: _distance(*pair) for name, pair in pairs.items()}


def _distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@torch.no_grad()
def golden_and_caches(setup: Setup, values: Values) -> None:
    """Compare float32 logits with the golden ones; test that caches continue in each precision."""
    use_exact_float32()
    reference = load_file(GOLDEN / "reference.safetensors")
    model = AutoModelForCausalLM.from_pretrained(GOLDEN).to(setup.device).eval()
    ids = reference["input_ids"].to(setup.device)
    logits = model(ids).logits
    error = _distance(logits, reference["logits"].to(setup.device).double())
    values.at_most("golden logits", error, 1e-4 if setup.cuda else 1e-5, "relative norm")
    row, padding = ids[:1], ids.shape[1] // 3
    padded = torch.cat([torch.zeros_like(row[:, :padding]), row], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :padding] = 0
    last = model(padded, attention_mask=mask).logits[:, -1]
    error = _distance(last, logits[:1, -1].double())
    values.at_most("padded row", error, 1e-4 if setup.cuda else 1e-5, "relative norm")
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        laptop = HypeNetForCausalLM(load_model_config("laptop")).to(setup.device, dtype).eval()
        prepared = prepare_model(laptop)
        name = str(dtype).removeprefix("torch.")
        values.equal(f"{name} prompts in chunks", prepared.chunked_prefill, True)
        values.equal(f"{name} prefixes not shared because", prepared.full_reason, None)
        values.equal(f"{name} rows of unequal length join", prepared.joins_rows, True)
