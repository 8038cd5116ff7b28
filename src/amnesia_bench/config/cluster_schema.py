"""Schemas of clusters: where the stages of an experiment run. They do not affect results."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from amnesia_bench.config.schema import Frozen

GpuName = Literal["a100", "h100", "h200"]
GPU_NAMES: tuple[str, ...] = get_args(GpuName)

Word = Annotated[str, Field(min_length=1, pattern=r"^[^\n]*$")]


class LocalCluster(Frozen):
    """This machine, alone or together with others that share the store.

    Attributes:
        gpu: the model of the GPUs, from which run times are estimated.
        vllm_python: path of the Python that runs stages with vLLM, which needs an environment of
            its own; None is the Python of this process.
    """

    kind: Literal["local"]
    gpu: GpuName = "h100"
    vllm_python: Word | None = None


class SlurmCluster(Frozen):
    """A SLURM cluster whose nodes share the store.

    Attributes:
        partition, account, qos, constraint, reservation: options of sbatch; None omits one.
        gpus_per_node, cpus_per_node, memory_gb_per_node: the size of a node. A stage with more GPUs
            than a node has runs on several nodes.
        gpu: the model of the GPUs, from which run times are estimated.
        time_limit_hours: the longest time that a job may request.
        time_margin: factor on the estimated run time of a job.
        save_seconds: how long before its time limit a job is told to save its state and stop. It
            should be at least twice the time of a save, since SLURM may be a minute late.
        max_restarts: how often in a row a job may be restarted, after its time limit, preemption or
            the failure of a node, without having saved more of its work.
        poll_seconds: seconds between two looks at the queue.
        python: path of the Python that runs the stages; None is the Python of this process.
        vllm_python: path of the Python that runs stages with vLLM; None is that of other stages.
        container: the words before it that run it in a container; jobs requeue themselves and start
            other nodes from outside of the container, where SLURM's commands exist.
        setup: shell lines at the start of each job.
        options: other options of sbatch.
    """

    kind: Literal["slurm"]
    partition: Word | None
    account: Word | None
    qos: Word | None
    constraint: Word | None
    reservation: Word | None
    gpus_per_node: PositiveInt
    cpus_per_node: PositiveInt
    memory_gb_per_node: PositiveInt | None
    gpu: GpuName
    time_limit_hours: PositiveFloat
    time_margin: Annotated[float, Field(ge=1)]
    save_seconds: PositiveInt
    max_restarts: NonNegativeInt
    poll_seconds: PositiveFloat
    python: Word | None
    vllm_python: Word | None
    container: tuple[Word, ...]
    setup: tuple[Word, ...]
    options: tuple[Word, ...]

    @model_validator(mode="after")
    def _jobs_have_time_to_save(self) -> Self:
        if 3600 * self.time_limit_hours <= 2 * self.save_seconds:
            raise ValueError(
                f"time_limit_hours {self.time_limit_hours} leaves no time to compute: save_seconds "
                f"{self.save_seconds} must be less than half of it"
            )
        return self
