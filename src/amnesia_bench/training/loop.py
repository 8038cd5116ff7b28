"""The training loop, for every objective and any number of processes.

A step depends only on the previous state and on the step number, which determines the data, the
learning rate and the random seed. So a run that is killed and resumed gives the same result as an
uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import AmnesiaError, StageFailedError
from amnesia_bench.training.batches import Batches, MicroBatch, StepBatch
from amnesia_bench.training.checkpoints import CheckpointFolder, SavedStep
from amnesia_bench.training.clock import Clock
from amnesia_bench.training.models import Learner
from amnesia_bench.training.optimizers import Updates
from amnesia_bench.training.processes import Processes
from amnesia_bench.training.schedule import learning_rate
from amnesia_bench.training.sharding import clip_gradients, sum_between_nodes

# The run is aborted after this many consecutive steps with non-finite gradients.
MAX_SKIPPED = 3


# On a CPU, up to this sequence length, the backward pass of the fused attention kernel takes twice
# as long as that of plain matrix products (docs/benchmarks.md). The memory for plain products grows
# with the square of the length.
_SHORT_TOKENS = 192


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One line of metrics.jsonl; no value depends on clocks or on the machine.

    `loss` is the mean over `trained_tokens`, or the mean of the means of all micro-batches, as
    recipe.loss_mean specifies. `grad_norm` is the gradient norm before clipping, or None if it was
    not finite, so that the update was skipped. `batch_checksum` identifies the token ids and loss
    masks of the batch.
    """

    step: int
    loss: float
    grad_norm: float | None
    learning_rate: float
    trained_tokens: int
    tokens: int
    documents: int
    batch_checksum: int
    by_layer: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LoopParts:
    """The components of the loop.

    Only the first process calls `record`. Its seconds, of computation and of everything else, are
    those since the gradients of the previous step were ready, so they include its update.
    """

    run: TrainingRun
    learner: Learner
    batches: Batches
    checkpoints: CheckpointFolder
    processes: Processes
    record: Callable[[StepRecord, tuple[float, float]], None]
    stop_requested: Callable[[], bool]


def _attention_kernels(batch: MicroBatch) -> AbstractContextManager[None]:
    """Select the attention kernel that is faster for documents of this length."""
    tokens = batch.input_ids.shape[1] if batch.packed is None else batch.packed.longest
    if batch.input_ids.device.type == "cpu" and tokens <= _SHORT_TOKENS:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


class Loop:
    """The training loop: `start` loads the newest checkpoint, and `run` trains from there.

    Args:
        parts: the components of the loop.
    """

    def __init__(self, parts: LoopParts) -> None:
        self._parts = parts
        self._trained = parts.learner.trained
        processes = parts.processes
        self._updates = Updates(
            parts.run.train.optimizer, self._trained, processes.device, processes.on_gpus
        )
        self._clock = Clock.of(parts.processes.device)
        # The number of consecutive updates skipped because of non-finite gradients.
        self._skipped = torch.zeros((), dtype=torch.int64)

    def start(self) -> SavedStep | None:
        """Load the newest checkpoint and return its description, or None if there is none.

        Raises:
            UserError: the checkpoint is damaged.
        """
        saved = self._parts.checkpoints.newest()
        self._updates.begin(0 if saved is None else saved.step)
        if saved is not None:
            self._parts.checkpoints.load(saved.step, self._state())
        return saved

    def run(self, done: int) -> bool:
        """Run all steps after step `done`, and return True.

        If a signal requests a stop, save the state and return False.

        Raises:
            StageFailedError: the loss or too many gradients in a row are not finite, a batch cannot
                be built, or a save failed. The last checkpoint is intact.
        """
        parts, train = self._parts, self._parts.run.train
        saved = done
        for step in range(done + 1, train.steps + 1):
            stop, totals, batch = self._begin(step)
            if stop:
                if saved != step - 1:
                    parts.checkpoints.save(step - 1, self._state())
                parts.checkpoints.wait()
                return False
            self._step(step, batch, totals)
            if step % train.checkpoints.every_steps == 0:
                parts.checkpoints.save(step, self._state())
                saved = step
        parts.checkpoints.wait()
        return True

    def _begin(self, step: int) -> tuple[bool, dict[str, int], StepBatch]:
        """Read this process's part of the batch, and synchronise the processes in one all-reduce.

        Returns:
            Whether any process was asked to stop, the counts summed over all processes, and the
            batch.
        """
        parts, objective = self._parts, self._parts.learner.objective
        failure: AmnesiaError | None = None
        batch, trained = StepBatch(micro_batches=(), documents=0, checksum=0), 0
        try:
            batch = parts.batches.step(step)
            trained = sum(objective.count(micro) for micro in batch.micro_batches)
        except AmnesiaError as error:
            failure = error
        counts = {
            "trained": trained,
            "tokens": sum(micro.input_ids.numel() for micro in batch.micro_batches),
            "documents": batch.documents,
            "checksum": batch.checksum,
            "saved": int(parts.checkpoints.poll()),
            "failed": int(failure is not None),
            "stop": int(parts.stop_requested()),
        }
        totals = dict(zip(counts, parts.processes.sums(list(counts.values())), strict=True))
        if totals["failed"]:
            parts.processes.agree(failure)
        if totals["saved"] == parts.processes.size:
            parts.checkpoints.wait()
        return bool(totals["stop"]), totals, batch

    def _step(self, step: int, batch: StepBatch, totals: dict[str, int]) -> None:
        parts, train = self._parts, self._parts.run.train
        objective, clock = parts.learner.objective, self._clock
        # Random numbers of the model, for example for dropout, must depend only on step and rank.
        torch.manual_seed((train.seed * 1_000_003 + step) * 4099 + parts.processes.rank)
        device = parts.processes.device
        sums = torch.zeros(1 + len(objective.metric_names), device=device, dtype=torch.float64)
        for number, micro in enumerate(batch.micro_batches, 1):
            weight = self._weight(objective.count(micro), totals["trained"])
            micro = micro.to(device)
            sum_between_nodes(objective, number == len(batch.micro_batches))
            with clock.computing(), _attention_kernels(micro):
                loss, by_layer = objective(micro)
                (loss * weight).backward()
            sums += torch.cat([loss.detach()[None], by_layer]).double() * weight
        dist.all_reduce(sums)
        with clock.computing():
            norm = self._clip(train.optimizer.clip_norm)
        values, grad_norm = sums.tolist(), float(norm)
        seconds = clock.read()  # reading the values has waited for the device
        rate = learning_rate(step, train.steps, train.optimizer)
        finite = self._is_finite(step, values[0], grad_norm)
        with clock.computing():
            if finite:
                self._updates.apply(rate)
            else:
                self._updates.skip()
        if parts.processes.first:
            record = StepRecord(
                step=step,
                loss=values[0],
                grad_norm=grad_norm if finite else None,
                learning_rate=rate,
                trained_tokens=totals["trained"],
                tokens=totals["tokens"],
                documents=totals["documents"],
                batch_checksum=totals["checksum"],
                by_layer=dict(zip(objective.metric_names, values[1:], strict=True)),
            )
            parts.record(record, seconds)

    def _is_finite(self, step: int, loss: float, grad_norm: float) -> bool:
        """Return whether the gradient norm is finite, and count the consecutive ones that are not.

        Raises:
            StageFailedError: the loss is not finite, or too many gradients in a row are not.
        """
        finite = math.isfinite(grad_norm)
        if finite:
            self._skipped.zero_()
        else:
            self._skipped += 1
        if math.isfinite(loss) and self._skipped < MAX_SKIPPED:
            return finite
        in_a_row = "" if finite else f" ({int(self._skipped)} in a row)"
        raise StageFailedError(
            f"step {step}: the loss is {loss}, the norm of its gradient {grad_norm}{in_a_row}",
            hint="The last checkpoint is intact. Look at the data of this step, or start a new run "
            "with a lower train.optimizer.learning_rate.",
        )

    def _weight(self, count: int, total: int) -> float:
        """Return the factor that turns the summed loss of a micro-batch into its share of the mean.

        Args:
            count: the weight of the micro-batch; see the objective's `count`.
            total: the sum of these weights over the step.
        """
        if self._parts.run.recipe.loss_mean == "trained_tokens":
            return 1.0 / total
        micro_batches = self._parts.batches.accumulation * self._parts.processes.size
        return 1.0 / (count * micro_batches)

    def _clip(self, limit: float) -> Tensor:
        return clip_gradients(self._trained.values(), limit, self._parts.processes)

    def _state(self) -> dict[str, Tensor]:
        """Return by name every tensor that a step changes and a checkpoint must contain."""
        return {"skipped": self._skipped, **self._updates.state()}
