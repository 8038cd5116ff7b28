"""Processes of a run as on GPU nodes: several nodes on one machine, and the fused optimizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.support.training_runs import TinyJob, as_process


def _fuse_adamw() -> None:
    """Make AdamW fused, as it is on CUDA; PyTorch also has that kernel for CPUs."""
    import torch

    honest = torch.optim.AdamW.__init__

    def fused(self: Any, *args: Any, **options: Any) -> None:
        honest(self, *args, **(options | {"fused": True, "foreach": False}))

    torch.optim.AdamW.__init__ = fused  # type: ignore[method-assign]


def _report_mesh() -> None:
    """Print the shape of the mesh to the log of the process."""
    import amnesia_bench.training.processes as module

    honest = module.device_mesh

    def reported(*args: Any) -> Any:
        mesh = honest(*args)
        print("mesh", tuple(mesh.shape), flush=True)
        return mesh

    module.device_mesh = reported


class OnNodes:
    """The target of a process; consecutive ranks share a node, as under torchrun."""

    def __init__(self, *per_node: int, fused: bool = False) -> None:
        self._per_node, self._fused = per_node, fused

    def __call__(self, job: TinyJob, rank: int, size: int, port: int, log: Path) -> None:
        self.prepare(rank)
        as_process(job, rank, size, port, log)

    def prepare(self, rank: int) -> None:
        """Make this process believe that it is on one of the nodes."""
        numbers = [number for number in self._per_node for _ in range(number)]
        os.environ["LOCAL_WORLD_SIZE"] = str(numbers[rank])
        if self._fused:
            _fuse_adamw()
        _report_mesh()
