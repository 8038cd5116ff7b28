"""Requests for training: train a model, or estimate the resources that the training needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import PositiveInt

from amnesia_bench.config.cluster_schema import GpuName
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.requests.base import Location, Request, StageRequest


class TrainRequest(StageRequest):
    """`train`: run one HypeNet training stage, or fine-tune a checkpoint.

    Attributes:
        run: the training configuration, for example `load_training("sft_miromind_2b")`.
        init: folder of the initial checkpoint.
        data: for each source of the run's mixture, the folder of its prepared data.
        teacher: folder of the teacher; required for stages 1 and 2.
    """

    front_door: ClassVar[str] = "train"
    run: TrainingRun
    init: Location
    data: Mapping[str, Location]
    teacher: Location | None = None


class EstimateRequest(Request):
    """`estimate`: estimate the memory, FLOPs and hours that a training run needs.

    The model shape is that of the checkpoint `init` or, if it is None, the shape that the training
    config names. `processes` is the number of GPUs.
    """

    run: TrainingRun
    init: Location | None = None
    processes: PositiveInt = 8
    gpu: GpuName = "h100"


class DryRunRequest(Request):
    """`dry_run`: run one training step on tensors without data, to learn what it needs.

    The fields are those of `EstimateRequest`. Only the config of the checkpoint `init` is read.
    """

    run: TrainingRun
    init: Location | None = None
    processes: PositiveInt = 8
