"""Where a step is written down: the record, its speed, W&B, and the terminal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.tracking.metrics_file import MetricsFile
from amnesia_bench.tracking.progress import progress
from amnesia_bench.tracking.wandb_sink import WandbRun, WandbSink
from amnesia_bench.training.loop import StepRecord

METRICS = "metrics.jsonl"
SPEED = "speed.jsonl"


class Recorder:
    """Writes what each step has to say: the record, the speed, W&B and the terminal."""

    def __init__(
        self, run: TrainingRun, folder: Path, first: bool, check_lease: Callable[[], None]
    ) -> None:
        self._run, self._folder, self._first = run, folder, first
        self._check_lease = check_lease
        self._metrics: MetricsFile | None = None

    @contextmanager
    def open(self, done: int) -> Iterator[None]:
        """Go on after `done` steps; only the first process writes."""
        if not self._first:
            yield
            return
        train = self._run.train
        with ExitStack() as stack:
            self._metrics = stack.enter_context(
                MetricsFile(self._folder / METRICS, keep_steps=done)
            )
            self._speed = stack.enter_context(MetricsFile(self._folder / SPEED, keep_steps=done))
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
        """Write one step."""
        assert self._metrics is not None
        line = asdict(step)
        line |= line.pop("by_layer")
        compute, other = seconds
        speed = step.tokens / (compute + other)
        self._metrics.append(line)
        self._speed.append(
            {
                "step": step.step,
                "compute_seconds": compute,
                "other_seconds": other,
                "tokens_per_second": speed,
            }
        )
        self._show(step.step, step.loss, speed)
        if self._wandb is not None:
            known = {key: value for key, value in line.items() if value is not None}
            self._wandb.log(known | {"tokens_per_second": speed}, step.step)

    def sync(self) -> None:
        """Wait until the record is on disk: no save may be ahead of it.

        Raises:
            StageFailedError: another process has taken over.
        """
        self._check_lease()
        if self._metrics is not None:
            self._metrics.sync()

    def _sink(self) -> WandbSink | None:
        train = self._run.train
        if train.wandb_project is None:
            return None
        # Runs of one name in two places are two runs.
        place = hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()
        run = WandbRun(
            project=train.wandb_project,
            run_id=f"{train.name}-{self._folder.stem}-{place[:8]}",
            group=train.model or train.name,
            job_type=train.objective,
            config=self._run.model_dump(mode="json"),
            folder=self._folder.parent,  # what is in the folder of the run goes with it
        )
        return WandbSink(run)
