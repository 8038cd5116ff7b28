"""An SFT step of the 2B model on one packed row, and whether runs can be repeated and resumed."""

from __future__ import annotations

import shutil
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from acceptance.setup import (
    NotHereError,
    Setup,
    Values,
    peak_bytes,
    synchronize,
)
from amnesia_bench.config.load import load_hypenet
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.costs.estimate import TrainingEstimate, estimate_training
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.costs.model_shape import read_model_shape
from amnesia_bench.modeling.named_configs import load_model_config
from amnesia_bench.requests.training import DryRunRequest
from amnesia_bench.training.dry_run.measure import dry_run
from amnesia_bench.training.loop import StepRecord
from bench_train import (
    RandomRows,
    Seconds,
    observe_training,
    random_checkpoint,
    sft,
    trainer_step_seconds,
)

STEPS, UNCOUNTED = 8, 3
# The loop reads two values of each step from the GPU: its loss and its gradient norm.
SYNCHRONISATIONS = 2
DOCUMENTS = 4  # in each row


def dry_run_of_sft_step(setup: Setup, values: Values) -> None:
    """Calculate the memory of the SFT step on tensors without data."""
    run = _run(setup, compiled=False)
    needs = dry_run(DryRunRequest(run=run, init=setup.checkpoint(), processes=1))
    values.note(peak_bytes=needs.peak, flops_per_token=needs.hardware_flops_per_token)


def sft_step(setup: Setup, values: Values) -> None:
    """Time an SFT step, and compare memory with the estimate; count looks at the GPU."""
    _measure(setup, values, compiled=False)


def compiled_sft_step(setup: Setup, values: Values) -> None:
    """Measure the same step with compiled blocks, as the committed configs train."""
    _measure(setup, values, compiled=True)


def _measure(setup: Setup, values: Values, compiled: bool) -> None:
    run, rows = _run(setup, compiled), _rows(setup)
    watch = _Watch(setup)
    observe_training(
        run, setup.checkpoint(), rows, setup.scratch / f"sft-{compiled}", watch.observe
    )
    step = statistics.median(sum(seconds) for seconds in watch.seconds[UNCOUNTED:-2])
    estimate = _estimate(setup, run)
    speed = run.train.sequence_tokens / step
    values.note(tokens_per_second=speed, losses=watch.losses, step_ms=step * 1e3)
    if (rate := setup.measured("1", "bf16_matmul_tflops")) is not None:
        bound = rate * 1e12 / estimate.hardware_flops_per_token
        values.beside("tokens_per_second of products alone", speed, bound, "rate of step 1")
    values.note(compute_share=[compute / (compute + other) for compute, other in watch.seconds])
    if setup.cuda:
        peak = GPUS["h200"].flops_per_second
        values.note(mfu=speed * estimate.flops_per_token / peak)
        values.at_most("peak_bytes", peak_bytes(), estimate.memory.total, "costs.estimate")
        if (calculated := setup.measured("4d", "peak_bytes")) is not None:
            values.beside("peak_bytes of the dry run", peak_bytes(), calculated, "step 4d")
        source = "the loop reads a loss and a gradient norm"
        values.at_most("synchronisations", len(watch.waits), SYNCHRONISATIONS, source)
        values.note(synchronised_at=sorted(set(watch.waits))[:20])
    values.note(top_kernels=watch.kernels)


class _Watch:
    """Observes each step: the last two are profiled, and watched for synchronisations."""

    def __init__(self, setup: Setup) -> None:
        self._cuda = setup.cuda
        self.seconds: list[Seconds] = []
        self.losses: list[float] = []
        self.waits: list[str] = []
        self.kernels: list[tuple[str, float, int]] = []
        kinds = [ProfilerActivity.CUDA] if setup.cuda else [ProfilerActivity.CPU]
        self._profile: Any = profile(activities=kinds)
        self._caught: Any = warnings.catch_warnings(record=True)

    def observe(self, step: StepRecord, seconds: Seconds) -> None:
        """Record a finished step, and prepare for the next one."""
        synchronize()
        self.seconds.append(seconds)
        self.losses.append(step.loss)
        if step.step == STEPS - 2:
            self._profile.__enter__()
        if step.step == STEPS - 1:
            self._profile.__exit__(None, None, None)
            self.kernels = self._top_kernels()
            self._warned = self._caught.__enter__()
            warnings.simplefilter("always")
            if self._cuda:
                torch.cuda.set_sync_debug_mode("warn")
        if step.step == STEPS:
            if self._cuda:
                torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(None, None, None)
            waits = [w for w in self._warned if "synchroniz" in str(w.message)]
            self.waits = [f"{Path(w.filename).name}:{w.lineno}" for w in waits]

    def _top_kernels(self) -> list[tuple[str, float, int]]:
        """Return name, milliseconds and calls of the 20 operations that take longest."""
        kind = "self_device_time_total" if self._cuda else "self_cpu_time_total"
        events = sorted(self._profile.key_averages(), key=lambda e: -getattr(e, kind))[:20]
        return [(event.key[:120], getattr(event, kind) / 1e3, event.count) for event in events]


def _run(setup: Setup, compiled: bool) -> TrainingRun:
    overrides = ["train.global_batch=1", "train.micro_batch=1", f"train.compile={compiled}".lower()]
    if setup.small:
        overrides.append("train.sequence_tokens=512")
    return sft("sft_miromind_2b", overrides, STEPS)


def _rows(setup: Setup) -> RandomRows:
    tokens = 512 if setup.small else 16_384
    return RandomRows(4, tokens, load_model_config(setup.size).vocab_size, tokens // DOCUMENTS)


def _estimate(setup: Setup, run: TrainingRun) -> TrainingEstimate:
    shape = read_model_shape({"model_type": "hypenet", **load_hypenet(setup.size).values})
    return estimate_training(run, shape, 1, GPUS["h200"])


def sft_step_of_trainer(setup: Setup, values: Values) -> None:
    """Time the same step in transformers' Trainer, and compare with steps 4 and 4c."""
    try:
        import accelerate  # noqa: F401 - Trainer needs it
    except ImportError as error:
        raise NotHereError("transformers' Trainer needs accelerate") from error
    rows = _rows(setup)
    seconds = trainer_step_seconds(setup.checkpoint(), rows, 1, setup.scratch / "trainer", STEPS)
    speed = rows.sequence_tokens / seconds
    values.note(tokens_per_second=speed, step_ms=seconds * 1e3, peak_bytes=peak_bytes())
    for step in ("4", "4c"):
        if (ours := setup.measured(step, "tokens_per_second")) is not None:
            values.beside(f"times_trainer_{step}", ours / speed, 1.3, "the goal")


def repeat_and_resume(setup: Setup, values: Values) -> None:
    """Train the laptop model twice, and once more with an interruption; compare the losses."""
    init = random_checkpoint(setup.scratch / "laptop", "tiny" if setup.small else "laptop")
    tokens = 64 if setup.small else 4096
    vocab = load_model_config("tiny" if setup.small else "laptop").vocab_size
    rows = RandomRows(8, tokens, vocab, tokens // DOCUMENTS)
    runs = {}
    for name, ends in {"first": [6], "second": [6], "resumed": [3, 6]}.items():
        records: list[StepRecord] = []
        for end in ends:
            run = _saving(end, tokens)
            observe_training(run, init, rows, setup.scratch / name, _appending_to(records))
        runs[name] = [(record.loss, record.grad_norm or 0.0) for record in records]
        shutil.rmtree(setup.scratch / name)
    for name in ("second", "resumed"):
        values.note(**{f"{name} run has the same bits": runs[name] == runs["first"]})
        pairs = zip(sum(runs[name], ()), sum(runs["first"], ()), strict=True)
        difference = max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)
        values.at_most(f"{name} run differs by", difference, 1e-2, "bfloat16 rounding")


def _appending_to(records: list[StepRecord]) -> Callable[[StepRecord, Seconds], None]:
    return lambda step, _: records.append(step)


def _saving(steps: int, tokens: int) -> TrainingRun:
    """Return an eager SFT that saves every three steps."""
    overrides = [f"train.sequence_tokens={tokens}", "train.global_batch=2", "train.micro_batch=1"]
    run = sft("sft_miromind_2b", [*overrides, "train.compile=false"], steps)
    saves = run.train.checkpoints.model_copy(update={"every_steps": 3})
    train = run.train.model_copy(update={"checkpoints": saves})
    return run.model_copy(update={"train": train})
