"""How a model is spread over the processes: FSDP2, block by block.

The embeddings, the final norm and the head stay in one group, the root's: tied embeddings are
one parameter, which two groups cannot share.
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
    """Spread a module over the processes, in place: each block by itself, the rest as one.

    The values are those of the first process; no other holds more than its share and one block.
    Weights keep their dtype as masters; they are gathered in `compute_dtype`. Gradients are summed
    over processes, in float32: whoever calls divides.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[compute_dtype],
        reduce_dtype=torch.float32,
        # Positions, boundaries and float32 buffers are not to be rounded.
        cast_forward_inputs=False,
    )
    for part in (*blocks, root):
        _fill(part, processes)
        fully_shard(part, mesh=processes.mesh, mp_policy=policy)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Without it gloo is asked for a scaled sum, which it does not know.
            module.set_force_sum_reduction_for_comms(True)


@torch.no_grad()
def _fill(part: nn.Module, processes: Processes) -> None:
    """Move a part to where it is computed, with the values that the first process has."""
    part.to(processes.device)
    if processes.size == 1:
        return
    for value in (*part.parameters(), *part.buffers()):
        if not isinstance(value, DTensor):  # what is spread already has its values
            dist.broadcast(value, src=0)


def whole(parameter: Any) -> torch.Tensor:
    """Return all of a parameter; every process must ask."""
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value
