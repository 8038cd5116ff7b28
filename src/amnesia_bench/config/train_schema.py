"""Schema of a training run: one config of configs/train and one of configs/recipe.

`train` defines the run; `recipe` selects between correct behaviour and that of the authors'
released code.
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
    """The optimizer and its learning rate: a linear warm-up, then a cosine decay to a floor.

    A floor equal to the peak gives a constant rate. `muon` updates the matrices of the layers with
    Muon, at the same rate, and all other parameters with AdamW. `betas` and `eps` are AdamW's.
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
    """Softmax-attention parameters that training does not update, by role.

    `layers` are indices of decoder layers; `all` selects every softmax layer.
    """

    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    layers: Literal["all"] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = "all"


class Checkpoints(Frozen):
    """How often the training state is saved, and how many saves are kept."""

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
        model: config of configs/model whose shape `estimate` uses if there is no checkpoint.
        teacher: hub name of the checkpoint that `align` and `distill` learn from.
        global_batch: sequences per optimizer step, over all processes.
        micro_batch: sequences per forward pass of one process.
        mixture: weight of each data source, as a share of sequences.
        align_layers: layers whose mixers `align` trains.
        trusted_code_sha256: for a checkpoint with custom code: the hash of that code and of the
            references to it in the checkpoint's config files. The error for a checkpoint with
            untrusted code prints this hash.
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
            raise ValueError("align and distill need a teacher, next_token takes none")
        if self.isolate_documents and self.teacher is not None:
            raise ValueError("align and distill do not isolate documents: isolate_documents: false")
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be below steps "
                f"{self.steps}: no step would have the full learning rate"
            )
        if self.freeze is not None and self.objective == "align":
            raise ValueError("align trains linear mixers only, freeze applies to softmax layers")
        return self


class Recipe(Frozen):
    """Correct behaviour, or that of the released code; each field is one quirk of that code.

    Attributes:
        master_dtype: dtype of the master weights and of the optimizer's moments.
        kd_rows: positions of a micro-batch that enter the KL sum (its divisor counts all).
        kd_dtype: dtype of the log-softmax and of the running sum of the KL.
        loss_mean: mean over the step's trained tokens, or mean of the means of its micro-batches.
        head: `tied` rejects a checkpoint whose head is untied.
        shuffle: true for a seeded permutation of the sequences, false for the order in which they
            were written.
        isolate_documents: `as_stage` uses the stage's setting, `never` disables isolation.
        buffers_dtype: dtype to which decays and rotary frequencies are rounded.
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
    """A training stage and its recipe."""

    train: TrainConfig
    recipe: Recipe

    @property
    def isolate_documents(self) -> bool:
        """Whether attention and recurrent state are cut between the documents of a sequence."""
        return self.train.isolate_documents and self.recipe.isolate_documents == "as_stage"
