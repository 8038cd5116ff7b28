"""The training loop, for every objective and any number of processes.

A step is a function of the previous state and of the step number, which determines data, learning
rate and seed. So a run that was killed and resumed gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import AmnesiaError, StageFailedError
from amnesia_bench.training.batches import Batches, MicroBatch, StepBatch
from amnesia_bench.training.checkpoints import CheckpointFolder, SavedStep
from amnesia_bench.training.models import Learner
from amnesia_bench.training.optimizers import Updates
from amnesia_bench.training.processes import Processes
from amnesia_bench.training.schedule import learning_rate

# After this many consecutive updates with non-finite gradients the run is aborted.
MAX_SKIPPED = 3


# On a CPU, for sequences up to this length, the backward pass of the fused kernel takes twice as
# long as plain matrices (docs/benchmarks.md). Matrices grow with the square of the length.
_SHORT_TOKENS = 192


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One line of metrics.jsonl: no value depends on clocks or on the machine.

    `loss` is the mean over `trained_tokens`. `grad_norm` is the norm before clipping, or None if it
    was not finite and the update was skipped. `batch_checksum` identifies the tokens and masks.
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


@dataclass
class Clock:
    """Seconds inside and outside of forward, backward and optimizer since the last `read`."""

    compute: float = 0.0
    other: float = 0.0
    _last: float = field(default_factory=time.perf_counter)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count the block as compute, and the time since the previous block as other."""
        started = time.perf_counter()
        self.other += started - self._last
        yield
        self._last = time.perf_counter()
        self.compute += self._last - started

    def read(self) -> tuple[float, float]:
        """Return (compute, other) and reset both."""
        now = time.perf_counter()
        seconds = self.compute, self.other + now - self._last
        self.compute = self.other = 0.0
        self._last = now
        return seconds


@dataclass(frozen=True, kw_only=True)
class LoopParts:
    """The components of the loop. `record` is called in the first process only."""

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
    """Trains from the newest checkpoint.

    Args:
        parts: the components of the loop.
    """

    def __init__(self, parts: LoopParts) -> None:
        self._parts = parts
        self._trained = parts.learner.trained
        self._updates = Updates(parts.run.train.optimizer, self._trained, parts.processes.device)
        self._clock = Clock()
        # Consecutive updates that were skipped because of non-finite gradients.
        self._skipped = torch.zeros((), dtype=torch.int64)

    def start(self) -> SavedStep | None:
        """Load the newest checkpoint, if any, and return its description.

        Raises:
            UserError: the checkpoint is damaged.
        """
        saved = self._parts.checkpoints.newest()
        self._updates.begin(0 if saved is None else saved.step)
        if saved is not None:
            self._parts.checkpoints.load(saved.step, self._state())
        return saved

    def run(self, done: int) -> bool:
        """Run the steps after `done`; return False if a signal stopped it, after saving the state.

        Raises:
            StageFailedError: the loss or too many gradients are not finite, the data cannot be
                trained on, or a save failed. The last checkpoint is intact.
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
        """Read the batch, and synchronise its counts, failures and signals in one all-reduce."""
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
        # If a model draws random numbers (dropout), they also depend on the step only.
        torch.manual_seed((train.seed * 1_000_003 + step) * 4099 + parts.processes.rank)
        device = parts.processes.device
        sums = torch.zeros(1 + len(objective.metric_names), device=device, dtype=torch.float64)
        for micro in batch.micro_batches:
            weight = self._weight(objective.count(micro), totals["trained"])
            micro = micro.to(device)
            with clock.computing(), _attention_kernels(micro):
                loss, by_layer = objective(micro)
                (loss * weight).backward()
            sums += torch.cat([loss.detach()[None], by_layer]).double() * weight
        dist.all_reduce(sums)
        with clock.computing():
            norm = self._clip(train.optimizer.clip_norm)
        values, grad_norm = sums.tolist(), float(norm)
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
            parts.record(record, clock.read())

    def _is_finite(self, step: int, loss: float, grad_norm: float) -> bool:
        """Return whether the gradient is finite; otherwise the update is skipped.

        Raises:
            StageFailedError: the loss is not finite, or too many consecutive gradients are not.
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
        """Return the factor from the summed loss of a micro-batch to its share of the mean."""
        if self._parts.run.recipe.loss_mean == "trained_tokens":
            return 1.0 / total
        micro_batches = self._parts.batches.accumulation * self._parts.processes.size
        return 1.0 / (count * micro_batches)

    def _clip(self, limit: float) -> Tensor:
        norm: Any = torch.nn.utils.clip_grad_norm_(self._trained.values(), limit)
        total: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return total

    def _state(self) -> dict[str, Tensor]:
        """Return every tensor that a step changes, by name."""
        return {"skipped": self._skipped, **self._updates.state()}
