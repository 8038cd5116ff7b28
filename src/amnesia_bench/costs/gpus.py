"""The GPU models for which costs can be estimated."""

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
