"""Dry-run one training step, and report its peak memory, its FLOPs and its collectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import amnesia_bench.modeling  # noqa: F401 - registers HypeNet with transformers' auto classes
from amnesia_bench.config.assumptions import processes_per_node
from amnesia_bench.config.load import load_model_file
from amnesia_bench.errors import UserError
from amnesia_bench.requests.training import DryRunRequest
from amnesia_bench.training.dry_run.fake_training import fake_training
from amnesia_bench.training.dry_run.meter import Meter, Traffic
from amnesia_bench.training.dry_run.phases import Phase, PhaseTracker
from amnesia_bench.training.heads import TRAINABLE
from amnesia_bench.training.models import check_supported
from amnesia_bench.training.optimizers import check_optimizer
from amnesia_bench.weights.checkpoint import open_checkpoint


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What one training step of rank 0 needs; all values are calculated, not measured on a GPU.

    Attributes:
        processes: the number of GPUs, in nodes of `per_node`.
        micro_batches: the number of micro-batches of the step that ran; more need no more memory.
        documents: the number of documents per sequence, all of equal length; 1 if the run does not
            isolate them.
        peak_bytes: the peak memory of live tensors by phase: forward, backward (with clipping) and
            optimizer. The allocator, CUDA and NCCL need more.
        flops_per_token: FLOPs without those that repeat the forward pass.
        hardware_flops_per_token: all FLOPs.
        collectives: the collectives of a micro-batch by kind; those of the optimizer step and of
            nodes are divided among the micro-batches.
    """

    processes: int
    per_node: int
    micro_batches: int
    documents: int
    peak_bytes: Mapping[str, int]
    flops_per_token: float
    hardware_flops_per_token: float
    collectives: Mapping[str, Traffic]

    @property
    def peak(self) -> int:
        """The largest of the peaks, in bytes."""
        return max(self.peak_bytes.values())

    @property
    def peak_phase(self) -> str:
        """The phase with the largest peak."""
        return max(self.peak_bytes, key=self.peak_bytes.__getitem__)


def dry_run(request: DryRunRequest) -> DryRun:
    """Run one real training step on tensors without data, which needs no GPU and no weights.

    Raises:
        UserError: the shape of the model is unknown, the model cannot be built or trained without
            its own code, or the global batch is not divisible by processes x micro-batch.
    """
    run, processes = request.run, request.processes
    check_optimizer(run.train, processes)
    model = _model(request)
    meters: list[Meter] = []

    def observers(tracker: PhaseTracker) -> Sequence[TorchDispatchMode]:
        meters.append(Meter(tracker))
        return meters

    # Compilation would need data. Its fused kernels allocate less, so the peak is an upper bound.
    eager = run.model_copy(update={"train": run.train.model_copy(update={"compile": False})})
    with fake_training(eager, model, processes, observers) as training:
        (meter,) = meters
        meter.reset()
        training.run_steps([lambda: None])
        micro_batches, documents = training.micro_batches, training.documents
    tokens = micro_batches * run.train.micro_batch * run.train.sequence_tokens
    phases = (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)
    return DryRun(
        processes=processes,
        per_node=processes_per_node(processes),
        micro_batches=micro_batches,
        documents=documents,
        peak_bytes={str(phase): meter.peak_bytes[phase] for phase in phases},
        flops_per_token=(meter.flops - meter.recomputed_flops) / tokens,
        hardware_flops_per_token=meter.flops / tokens,
        collectives={
            kind: Traffic(total.count / micro_batches, total.bytes / micro_batches)
            for kind, total in meter.traffic.items()
        },
    )


def _model(request: DryRunRequest) -> Mapping[str, Any]:
    """Return the values of the config.json of the model to train."""
    train = request.run.train
    if request.init is not None:
        checkpoint = open_checkpoint(request.init)
        check_supported(checkpoint)
        name, values = str(request.init), dict(checkpoint.config)
    elif train.model is not None:
        name, values = train.model, load_model_file(train.model)
    else:
        raise UserError(
            f"{train.name} names no model: --init is missing",
            hint="Give the folder of the checkpoint that training starts from.",
        )
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"{name}: a model of type {kind} cannot be built from its config alone, because its "
            "code comes with its checkpoint and a dry run runs no such code",
            hint="`amnesia train estimate` needs no code.",
        )
    if kind not in TRAINABLE:
        raise UserError(f"{name}: training models of type {kind} is not supported")
    if train.objective != "next_token" and kind != "hypenet":
        raise UserError(
            f"{name} is a {kind}: the dry run of stages 1 and 2 needs a HypeNet as the student"
        )
    return values
