"""Requests for training: train, or estimate the resources that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

from pydantic import PositiveInt

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.requests.base import Location, Request, StageRequest

GpuName = Literal["a100", "h100", "h200"]
GPU_NAMES: tuple[str, ...] = get_args(GpuName)


class TrainRequest(StageRequest):
    """`train`: train a stage of HypeNet, or fine-tune.

    Attributes:
        run: the training configuration; `load_training("sft_miromind_2b")`.
        init: folder of the initial checkpoint.
        data: folder of prepared data for each source of the run's mixture.
        teacher: folder of the teacher; required by stages 1 and 2.
    """

    front_door: ClassVar[str] = "train"
    run: TrainingRun
    init: Location
    data: Mapping[str, Location]
    teacher: Location | None = None


class EstimateRequest(Request):
    """`estimate`: estimate memory, FLOPs and hours of a training run before it starts.

    If `init` is None, the model shape is the one that the run's config names.
    """

    run: TrainingRun
    init: Location | None = None
    processes: PositiveInt = 8
    gpu: GpuName = "h100"
