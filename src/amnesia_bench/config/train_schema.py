"""Schema of a training run, which has one config of configs/train and one of configs/recipe.

`train` defines the run; `recipe` selects either correct behaviour or the behaviour of the authors'
released code.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from amnesia_bench.config.cache_key import ADDED_LATER, NEUTRAL
from amnesia_bench.config.schema import Frozen
from amnesia_bench.records.roles import Role

Dtype = Literal["fp32", "bf16"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Frozen):
    """The optimizer and its learning-rate schedule: a linear warm-up, then a cosine decay.

    The rate decays from `learning_rate` to `min_learning_rate`; if they are equal, it is constant
    after the warm-up. `muon` updates the matrices of the decoder layers with Muon and all other
    parameters with AdamW, at the same rate. `betas` and `eps` apply to AdamW.
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
    """The parameters that training does not update: those with `roles` in the softmax layers.

    `layers` are indices of decoder layers; `all` selects every softmax layer.
    """

    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    layers: Literal["all"] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = "all"


class Checkpoints(Frozen):
    """How often to save the training state, and how many saves to keep."""

    every_steps: PositiveInt
    keep: PositiveInt
    asynchronous: bool


def _weights_are_positive(mixture: dict[str, float]) -> dict[str, float]:
    if not mixture or min(mixture.values()) <= 0:
        raise ValueError("name at least one source, each with a weight above 0")
    return mixture


# Which activations of a block the backward pass computes again; see `training/blocks.py`.
Recomputation = Literal["none", "selective", "full"]


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(
            f"is none, selective or full; write {'full' if value else 'none'} for "
            f"{str(value).lower()}"
        )
    return value


class TrainConfig(Frozen):
    """One stage of training.

    Attributes:
        objective: `align` (stage 1) matches hidden states of the teacher's attention, `distill`
            (stage 2) matches the teacher's distribution, and `next_token` (stage 3 and SFT)
            predicts the next token.
        model: name of the config in configs/model whose shape `estimate` uses if there is no
            checkpoint.
        teacher: hub name of the checkpoint from which `align` and `distill` learn.
        global_batch: number of sequences per optimizer step, over all processes.
        micro_batch: number of sequences per forward pass of one process.
        mixture: weight of each data source, as a share of sequences.
        align_layers: indices of the layers whose mixers `align` trains.
        activation_checkpointing: which activations of a block the backward pass computes again
            instead of reading them from memory: `none`, `selective` (half of the matrix products
            and everything that is cheap), or `full` (all).
        compile: whether torch.compile fuses the operations of each block, which changes rounding.
        trusted_code_sha256: for a checkpoint with custom code, the hash of that code and of the
            references to it in the checkpoint's config files. The error message that rejects
            untrusted code prints this hash.
    """

    name: Annotated[Name, NEUTRAL]
    objective: Literal["align", "distill", "next_token"]
    model: Annotated[Name | None, NEUTRAL] = None  # used only for estimates
    teacher: Annotated[str | None, NEUTRAL] = None  # the key contains the checkpoint instead
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
    activation_checkpointing: Annotated[Recomputation, BeforeValidator(_no_boolean), NEUTRAL]
    compile: Annotated[bool, ADDED_LATER] = False
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
    """Selects correct behaviour or that of the released code, one field per quirk of that code.

    Attributes:
        master_dtype: dtype of the master weights and of the optimizer's moments.
        kd_rows: which positions of a micro-batch contribute to the KL sum, all or the first 512;
            the divisor always counts all positions.
        kd_dtype: dtype of the log-softmax and of the running KL sum.
        loss_mean: `trained_tokens` averages the loss over all trained tokens of a step,
            `micro_batches` averages the mean losses of its micro-batches.
        head: `as_init` keeps the head of the initial checkpoint, `tied` rejects a checkpoint with
            an untied head.
        shuffle: true trains on a seeded permutation of the sequences, false trains on them in the
            order in which they were written.
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
        """Whether attention and recurrent state are reset between the documents of a sequence."""
        return self.train.isolate_documents and self.recipe.isolate_documents == "as_stage"
