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


def _values(part: nn.Module) -> tuple[torch.Tensor, ...]:
    return (*part.parameters(), *part.buffers())


def whole(parameter: Any) -> torch.Tensor:
    """Return the full tensor of a parameter; every process must call this function."""
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value
