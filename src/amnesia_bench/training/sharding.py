"""Shard a model over the processes with FSDP2, block by block.

The embeddings, the final norm and the head belong to the FSDP group of the root module: tied
embeddings and head are one parameter, which two groups cannot share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from amnesia_bench.config.train_schema import Dtype
from amnesia_bench.training.processes import Processes

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shard(
    root: nn.Module, blocks: Iterable[nn.Module], processes: Processes, compute_dtype: Dtype
) -> None:
    """Shard a module in place; each block becomes one FSDP group, and the rest another.

    The first process broadcasts the values, so every other process stores at most its shards and
    one complete block at any time. Master weights keep their dtype and are gathered in
    `compute_dtype`. Gradients are summed over all processes in float32, not averaged: first within
    each node and then, if there are several nodes, between them.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[compute_dtype],
        reduce_dtype=torch.float32,
        # Inputs are not cast, since positions, document bounds and float32 values must be exact.
        cast_forward_inputs=False,
    )
    for part in (*blocks, root):
        _fill(part, processes)
        fully_shard(part, mesh=processes.mesh, mp_policy=policy)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # By default FSDP requests a scaled sum within a node, which gloo does not support.
            module.set_force_sum_reduction_for_comms(True)


@torch.no_grad()
def _fill(part: nn.Module, processes: Processes) -> None:
    """Move a module to the device, and broadcast its values from the first process."""
    # `Module.to` would also replace tensors that are already there, which fails for fake ones.
    if any(value.device != processes.device for value in _values(part)):
        part.to(processes.device)
    if processes.size == 1:
        return
    for value in _values(part):
        if not isinstance(value, DTensor):  # a DTensor was broadcast with its block
            dist.broadcast(value, src=0)


def sum_between_nodes(root: nn.Module, now: bool) -> None:
    """Choose whether the next backward pass also sums gradients between nodes.

    If not, the sums of each node are kept and added to the next pass's. So a step of many
    micro-batches sends its gradients only once over the network between nodes.
    """
    if isinstance(root, FSDPModule):
        root.set_requires_all_reduce(now)


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], limit: float, processes: Processes
) -> torch.Tensor:
    """Scale the gradients so that their total norm is at most `limit`; return the norm before.

    The result is that of `torch.nn.utils.clip_grad_norm_`, which would run several small kernels
    per gradient if these are DTensors.
    """
    shards = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(shards)
    if processes.size > 1:
        # All processes take part, so that all scale by the same bits. Otherwise the copies of the
        # model on different nodes could drift apart.
        square = norm.float().square() / processes.copies
        dist.all_reduce(square)
        norm = square.sqrt()
    torch._foreach_mul_(shards, torch.clamp(limit / (norm + 1e-6), max=1.0))
    return norm


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _values(part: nn.Module) -> tuple[torch.Tensor, ...]:
    return (*part.parameters(), *part.buffers())


def whole(parameter: Any) -> torch.Tensor:
    """Return the full tensor of a parameter; every process must call this function."""
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value
