"""Requests for training: train, or say beforehand what it takes."""

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
        run: what is trained and how; `load_training("sft_miromind_2b")`.
        init: folder of the checkpoint to begin with.
        data: folder of prepared data for each source of the run's mixture.
        teacher: folder of the teacher, for stages 1 and 2.
    """

    front_door: ClassVar[str] = "train"
    run: TrainingRun
    init: Location
    data: Mapping[str, Location]
    teacher: Location | None = None


class EstimateRequest(Request):
    """`estimate`: memory, FLOPs and hours of a training before it starts.

    `init` None takes the shape that the run names.
    """

    run: TrainingRun
    init: Location | None = None
    processes: PositiveInt = 8
    gpu: GpuName = "h100"
