"""The GPU models for which costs can be estimated, and the rates that their kernels reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU model with its peak dense bf16 FLOPs and memory, from NVIDIA's SXM data sheets."""

    name: str
    flops_per_second: float
    memory_bytes: float
    bytes_per_second: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312e12, memory_bytes=80e9, bytes_per_second=2.039e12),
        Gpu("h100", 989e12, memory_bytes=80e9, bytes_per_second=3.35e12),
        Gpu("h200", 989e12, memory_bytes=141e9, bytes_per_second=4.8e12),
    )
}


# One core of a CPU, with rates at which the formulas for GPUs give what was measured with Gemma 3
# 270M in bfloat16 on a contended x86 machine: 1.1 core-seconds to prefill 512 tokens, and 0.1 to
# decode a token alone. Caches are in memory, of which a stage is assumed to use 8 GB.
CPU_CORE = Gpu("cpu core", 2.9e11, memory_bytes=8e9, bytes_per_second=9e9)
# By how much training falls short of that: a step of a Llama of 135 M parameters on 4 x 1,024
# tokens took 80 core-seconds.
CPU_TRAINING_SLOWDOWN = 2.4


@dataclass(frozen=True, kw_only=True)
class KernelRates:
    """The rates that good kernels reach on a GPU, below the peaks of the data sheet.

    Attributes:
        flops_per_second: by kind of kernel: large bf16 matrix products, fla's chunked kernels of
            lightning attention, flash attention.
        bytes_per_second: of memory that a kernel reads and writes in order.
    """

    flops_per_second: Mapping[str, float]
    bytes_per_second: float


# fla: an assumed 40 % of the TF32 peak; flash attention: an assumed 60 % of the bf16 peak, which
# needs FlashAttention-3 (arXiv 2407.08608). The kernels of PyTorch itself are slower.
_ATTENTION = {"lightning": 200e12, "softmax": 0.6 * 989e12}

# H200: products and bandwidth were measured on one, outside this project. H100: 75 % of the bf16
# peak and 85 % of the bandwidth of the data sheet.
KERNEL_RATES = {
    "h100": KernelRates(
        flops_per_second={"matmul": 740e12, **_ATTENTION}, bytes_per_second=2.85e12
    ),
    "h200": KernelRates(flops_per_second={"matmul": 788e12, **_ATTENTION}, bytes_per_second=4.3e12),
}
