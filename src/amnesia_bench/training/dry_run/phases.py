"""Know at every moment of a training step whether it is in its forward pass, and so on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Phase(StrEnum):
    """A part of a training step; `BACKWARD` includes clipping."""

    BUILD = "build"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


class PhaseTracker:
    """The current phase.

    Attributes:
        phase: the current phase.
        recomputing: whether activation checkpointing is repeating a forward pass in the backward
            pass.
    """

    def __init__(self) -> None:
        self.phase = Phase.BUILD
        self._open_parts = 0

    @property
    def recomputing(self) -> bool:
        return self.phase is Phase.BACKWARD and self._open_parts > 0

    @contextmanager
    def following(self, objective: nn.Module) -> Iterator[None]:
        """Follow the training steps of a sharded objective during the block."""
        blocks = [
            module
            for module in objective.modules()
            if isinstance(module, FSDPModule) and module is not objective
        ]
        # Whether recomputation calls the hooks of a block or only those of its children depends on
        # the version of transformers.
        parts = [part for block in blocks for part in (block, *block.children())]
        with ExitStack() as stack:
            # FSDP gathers weights in hooks of its own, which belong to the phase.
            hooks = [
                objective.register_forward_pre_hook(self._enter(Phase.FORWARD), prepend=True),
                objective.register_forward_hook(self._enter(Phase.BACKWARD)),
                register_optimizer_step_pre_hook(self._enter(Phase.OPTIMIZER)),
            ]
            for part in parts:
                hooks.append(part.register_forward_pre_hook(self._count(1), prepend=True))
                # Recomputation ends with an exception, as soon as it has all activations.
                hooks.append(part.register_forward_hook(self._count(-1), always_call=True))
            for hook in hooks:
                stack.callback(hook.remove)
            yield

    def _enter(self, phase: Phase) -> Any:
        def enter(*_: object) -> None:
            self.phase = phase

        return enter

    def _count(self, change: int) -> Any:
        def count(*_: object) -> None:
            self._open_parts += change

        return count
