"""What a training run may say: one config of configs/train and one of configs/recipe.

`train` holds what the run is; `recipe` holds how faithful it is to the authors' released code.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from amnesia_bench.config.cache_key import NEUTRAL
from amnesia_bench.config.schema import Frozen
from amnesia_bench.records.roles import Role

Dtype = Literal["fp32", "bf16"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Frozen):
    """The optimizer and its learning rate: a linear warm-up, then a cosine down to a floor.

    A floor equal to the peak is a constant rate. `muon` updates the matrices of the layers by
    Muon, at the same rate, and all else by AdamW, whose constants `betas` and `eps` are.
    """

    kind: Literal["adamw", "muon"]
    learning_rate: PositiveFloat
    min_learning_rate: PositiveFloat
    warmup_steps: NonNegativeInt
    betas: tuple[Fraction, Fraction]
    eps: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: PositiveFloat

    @model_validator(mode="after")
    def _floor_is_below_the_peak(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate "
                f"{self.learning_rate}"
            )
        return self


class Freeze(Frozen):
    """Softmax-attention parameters that training must leave alone, by role.

    `layers` are indices of decoder layers; `all` means every softmax layer.
    """

    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    layers: Literal["all"] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = "all"


class Checkpoints(Frozen):
    """When the state is saved, and how many saves are kept."""

    every_steps: PositiveInt
    keep: PositiveInt
    asynchronous: bool


def _weights_are_positive(mixture: dict[str, float]) -> dict[str, float]:
    if not mixture or min(mixture.values()) <= 0:
        raise ValueError("name at least one source, each with a weight above 0")
    return mixture


class TrainConfig(Frozen):
    """One stage of training.

    Attributes:
        objective: `align` (stage 1, hidden states of the teacher's attention), `distill` (stage 2,
            the teacher's distribution) or `next_token` (stage 3 and SFT).
        model: the config of configs/model whose shape `estimate` takes without a checkpoint.
        teacher: the checkpoint on the hub that `align` and `distill` learn from, by name.
        global_batch: sequences per optimizer step, over all processes.
        micro_batch: sequences a process runs at a time.
        mixture: weight per source of data, in sequences.
        align_layers: layers whose mixers `align` trains.
        trusted_code_sha256: hash of the code of a checkpoint that brings its own, and of what its
            files name of it; the message that refuses such a checkpoint gives it.
    """

    name: Annotated[Name, NEUTRAL]
    objective: Literal["align", "distill", "next_token"]
    model: Annotated[Name | None, NEUTRAL] = None  # for estimates only
    teacher: Annotated[str | None, NEUTRAL] = None  # the checkpoint itself is an input
    steps: PositiveInt
    global_batch: PositiveInt
    micro_batch: PositiveInt
    sequence_tokens: PositiveInt
    mixture: Annotated[dict[str, float], AfterValidator(_weights_are_positive)]
    isolate_documents: bool
    align_layers: Literal["all"] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (
        "all"
    )
    freeze: Freeze | None = None
    optimizer: Optimizer
    compute_dtype: Dtype
    activation_checkpointing: Annotated[bool, NEUTRAL]
    loss_chunk_rows: Annotated[PositiveInt, NEUTRAL]
    checkpoints: Annotated[Checkpoints, NEUTRAL]
    trusted_code_sha256: str | None = None
    wandb_project: Annotated[str | None, NEUTRAL] = None
    seed: NonNegativeInt

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of micro_batch "
                f"{self.micro_batch}"
            )
        if (self.objective == "next_token") != (self.teacher is None):
            raise ValueError("align and distill name a teacher, next_token has none")
        if self.isolate_documents and self.teacher is not None:
            raise ValueError("align and distill do not isolate documents: isolate_documents: false")
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} leaves none of {self.steps} "
                "steps at full rate"
            )
        if self.freeze is not None and self.objective == "align":
            raise ValueError("align trains linear mixers only: freeze names softmax layers")
        return self


class Recipe(Frozen):
    """What a careful engineer would run, or what the released code does; one quirk per field.

    Attributes:
        master_dtype: of the weights and the optimizer's moments that updates accumulate in.
        kd_rows: which positions of a micro-batch enter the KL sum (its divisor counts all).
        kd_dtype: of the log-softmax and the running sum of the KL.
        loss_mean: over the step's trained tokens, or the mean of the means of its micro-batches.
        head: `tied` refuses a checkpoint whose head is untied.
        shuffle: a seeded permutation of the sequences, or the order they were written in.
        isolate_documents: as the stage says, or never.
        buffers_dtype: what decays and rotary frequencies are rounded to.
    """

    name: Annotated[Name, NEUTRAL]
    master_dtype: Dtype
    kd_rows: Literal["all", "first512"]
    kd_dtype: Dtype
    loss_mean: Literal["trained_tokens", "micro_batches"]
    head: Literal["as_init", "tied"]
    shuffle: bool
    isolate_documents: Literal["as_stage", "never"]
    buffers_dtype: Dtype


class TrainingRun(Frozen):
    """A stage and its recipe."""

    train: TrainConfig
    recipe: Recipe

    @property
    def isolate_documents(self) -> bool:
        """Whether documents of a row see nothing of each other."""
        return self.train.isolate_documents and self.recipe.isolate_documents == "as_stage"
