"""The optimizers: AdamW for all parameters, or Muon for the weight matrices of the layers.

Muon orthogonalises the momentum of a complete matrix (Keller Jordan,
https://kellerjordan.github.io/posts/muon). With Muon, all other parameters, such as embeddings,
norms and biases, use AdamW. Muon's updates are scaled to the size of AdamW's (Liu et al.,
arXiv 2502.16982), so both use the same learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from amnesia_bench.config.train_schema import Optimizer, TrainConfig
from amnesia_bench.errors import UserError
from amnesia_bench.training.muon import Muon

_MOMENTS = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}


def check_optimizer(train: TrainConfig, processes: int) -> None:
    """Raise a UserError if the stage's optimizer cannot run on this number of processes."""
    if train.optimizer.kind == "muon" and processes > 1:
        raise UserError(
            f"train.optimizer.kind=muon with {processes} processes: Muon needs whole matrices, "
            "but each process has only a shard of them",
            hint="Train with one process, or with train.optimizer.kind=adamw.",
        )


class Updates:
    """The optimizers of a run, and their state by parameter name.

    Args:
        settings: the kind of optimizer and its hyperparameters.
        trained: the sharded parameters by their tensor names in the checkpoint.
        device: the device of the parameters.
        fused: whether AdamW runs as one fused kernel, as it should on GPUs. On a CPU it rounds
            differently than the default kernels, with which published numbers were computed.
    """

    def __init__(
        self,
        settings: Optimizer,
        trained: Mapping[str, nn.Parameter],
        device: torch.device,
        fused: bool,
    ) -> None:
        self._device = device
        self._trained = trained
        muon = settings.kind == "muon"
        matrices = {n for n, p in trained.items() if muon and p.ndim == 2 and ".layers." in n}
        # With one process each shard is a complete tensor, so its local data are updated: the
        # overhead of DTensor would dominate the time of a Muon step.
        self._updated = {n: _whole(p) if _is_whole(p) else p for n, p in trained.items()}
        self._optimizers: list[torch.optim.Optimizer] = []
        if other_parameters := [p for n, p in self._updated.items() if n not in matrices]:
            self._optimizers.append(
                torch.optim.AdamW(
                    other_parameters,
                    lr=0.0,
                    betas=settings.betas,
                    eps=settings.eps,
                    weight_decay=settings.weight_decay,
                    fused=fused,
                    foreach=not fused,
                )
            )
        if matrices:
            self._optimizers.append(
                Muon(
                    [self._updated[name] for name in trained if name in matrices],
                    lr=0.0,
                    weight_decay=settings.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    def begin(self, step: int) -> None:
        """Allocate the optimizer state, with AdamW's step count set to `step`.

        The moments are zero until a checkpoint is loaded into them.
        """
        for optimizer in self._optimizers:
            for parameter in _parameters(optimizer):
                state = optimizer.state[parameter]
                for moment in _MOMENTS[type(optimizer)]:
                    state[moment] = torch.zeros_like(parameter.detach())
                if isinstance(optimizer, torch.optim.AdamW):
                    state["step"] = torch.tensor(float(step), device=self._device)

    def apply(self, learning_rate: float) -> None:
        """Update the parameters with their gradients, and clear the gradients."""
        for name, parameter in self._trained.items():
            updated = self._updated[name]
            if updated is not parameter and parameter.grad is not None:
                updated.grad = _whole(parameter.grad)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        self._clear_gradients()

    def skip(self) -> None:
        """Clear the gradients without an update, but advance AdamW's step count.

        So the count always equals the number of completed steps, to which a resume sets it.
        """
        for optimizer in self._optimizers:
            if isinstance(optimizer, torch.optim.AdamW):
                for state in optimizer.state.values():
                    state["step"] += 1
        self._clear_gradients()

    def state(self) -> dict[str, Tensor]:
        """Return by name the trained parameters and the moments of the optimizers."""
        tensors = {f"weight/{name}": p.detach() for name, p in self._trained.items()}
        names = {parameter: name for name, parameter in self._updated.items()}
        for optimizer in self._optimizers:
            for parameter in _parameters(optimizer):
                for moment in _MOMENTS[type(optimizer)]:
                    tensors[f"{moment}/{names[parameter]}"] = optimizer.state[parameter][moment]
        return tensors

    def _clear_gradients(self) -> None:
        for parameter in (*self._trained.values(), *self._updated.values()):
            parameter.grad = None


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_whole(tensor: Tensor) -> bool:
    return not isinstance(tensor, DTensor) or tensor.device_mesh.size() == 1


def _whole(tensor: Tensor) -> Tensor:
    """Return the detached local data of a tensor that is not split over processes."""
    local = tensor.detach()
    return local.to_local() if isinstance(local, DTensor) else local
