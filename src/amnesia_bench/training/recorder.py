"""Record each step in the metrics file and the speed file, on W&B and on the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import UserError
from amnesia_bench.tracking.metrics_file import EMPTY_PREFIX, FilePrefix, MetricsFile
from amnesia_bench.tracking.progress import progress
from amnesia_bench.tracking.tracked_run import RunHeader, run_id_of
from amnesia_bench.tracking.wandb_sink import WandbSink
from amnesia_bench.training.loop import StepRecord

METRICS = "metrics.jsonl"
SPEED = "speed.jsonl"
RECORDS = (METRICS, SPEED)


def recorded_seconds(speed: Path) -> float:
    """Return how long all steps in a speed file took."""
    steps = map(json.loads, speed.read_text(encoding="utf-8").splitlines())
    return float(sum(step["compute_seconds"] + step["other_seconds"] for step in steps))


class Recorder:
    """Writes the metrics of each step to metrics.jsonl, speed.jsonl, W&B and the terminal."""

    def __init__(
        self, run: TrainingRun, folder: Path, first: bool, check_lease: Callable[[], None]
    ) -> None:
        self._run, self._folder, self._first = run, folder, first
        self._check_lease = check_lease
        self._files: dict[str, MetricsFile] = {}

    @contextmanager
    def open(self, done: int, kept: Mapping[str, FilePrefix]) -> Iterator[None]:
        """Open the files, truncated to their prefixes `kept` after `done` steps.

        If `done` is 0, `kept` is empty and the files are emptied. Only the first process opens
        files.

        Raises:
            UserError: a file was changed since the checkpoint, or `kept` lacks a file.
        """
        if not self._first:
            yield
            return
        train = self._run.train
        with ExitStack() as stack:
            for name in RECORDS:
                if done and name not in kept:
                    raise UserError(
                        f"{self._folder}: the checkpoint of step {done} has no record of {name}",
                        hint="Remove that checkpoint to resume from the previous one.",
                    )
                file = MetricsFile(self._folder / name, keep=kept.get(name, EMPTY_PREFIX))
                self._files[name] = stack.enter_context(file)
            self._show = stack.enter_context(progress(train.name, train.steps, done))
            self._wandb = self._sink()
            exit_code = 1
            try:
                yield
                exit_code = 0
            finally:
                if self._wandb is not None:
                    self._wandb.finish(exit_code)

    def record(self, step: StepRecord, seconds: tuple[float, float]) -> None:
        """Record one step; `seconds` are the times of computation and of everything else."""
        line = asdict(step)
        line |= line.pop("by_layer")
        compute, other = seconds
        speed = step.tokens / (compute + other)
        self._files[METRICS].append(line)
        self._files[SPEED].append(
            {
                "step": step.step,
                "compute_seconds": compute,
                "other_seconds": other,
                "tokens_per_second": speed,
            }
        )
        self._show(step.step, step.loss, speed)
        if self._wandb is not None:
            present = {key: value for key, value in line.items() if value is not None}
            self._wandb.log(present | {"tokens_per_second": speed}, step.step)

    def written(self, step: int) -> dict[str, FilePrefix]:
        """Wait until the files are on disk, and return their prefixes up to and including `step`.

        Raises:
            StageFailedError: another process has taken over the lease.
        """
        self._check_lease()
        return {name: file.written(step) for name, file in self._files.items()}

    def _sink(self) -> WandbSink | None:
        train = self._run.train
        if train.wandb_project is None:
            return None
        out = self._folder.with_name(self._folder.stem)
        header = RunHeader(
            project=train.wandb_project,
            run_id=run_id_of(out),
            name=out.name,
            group=train.model or train.name,
            job_type=train.objective,
            config=self._run.model_dump(mode="json"),
        )
        # The run's own folder is removed when it ends.
        return WandbSink(header, self._folder.parent)
