"""The GPU models for which costs can be estimated, and the rates that their kernels reach."""

from __future__ import annotations

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


@dataclass(frozen=True, kw_only=True)
class KernelRates:
    """The rates that good kernels reach on a GPU, below the peaks of the data sheet.

    Attributes:
        matmul_flops_per_second: of large bf16 matrix products.
        bytes_per_second: of memory that a kernel reads and writes in order.
        lightning_flops_per_second: of fla's chunked kernels.
        softmax_flops_per_second: of flash attention, forward and backward.
    """

    matmul_flops_per_second: float
    bytes_per_second: float
    lightning_flops_per_second: float
    softmax_flops_per_second: float


# H200: matrix products and bandwidth were measured on one, outside this project. H100: 75 % of the
# bf16 peak and 85 % of the bandwidth of the data sheet. Flash attention: 60 % of the bf16 peak
# (FlashAttention-3, arXiv 2407.08608, reaches more forward and less backward). fla: an assumed 40 %
# of the TF32 peak, for bf16 operands too; both are limited by memory at this rate.
KERNEL_RATES = {
    "h100": KernelRates(
        matmul_flops_per_second=740e12,
        bytes_per_second=2.85e12,
        lightning_flops_per_second=200e12,
        softmax_flops_per_second=593.4e12,
    ),
    "h200": KernelRates(
        matmul_flops_per_second=788e12,
        bytes_per_second=4.3e12,
        lightning_flops_per_second=200e12,
        softmax_flops_per_second=593.4e12,
    ),
}
