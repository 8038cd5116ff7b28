"""Schemas of profiles and experiments.

A profile lists models, how they are trained, and the size of the evaluations: `profile=paper` is
the paper at full scale, `profile=tiny` the same stages on a laptop. An experiment lists which of a
profile's models and tasks it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from amnesia_bench.config.eval_schema import NiahConfig
from amnesia_bench.config.files import options
from amnesia_bench.config.load import load_root
from amnesia_bench.config.messages import check_known
from amnesia_bench.config.overrides import expand_sweep
from amnesia_bench.config.schema import Frozen, Variant, unique
from amnesia_bench.errors import UserError
from amnesia_bench.records.ids import REASONING_TASKS, Method

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Text = Annotated[str, Field(min_length=1)]
Overrides = tuple[Text, ...]
LogitsScaling = Annotated[str, Field(pattern=r"^hype \d+(\.\d+)?$")]


class TrainingStep(Frozen):
    """One training run: a config of configs/train, and overrides of it.

    `data` maps sources of the mixture to configs of configs/data where their names differ.
    """

    train: Name
    data: Mapping[str, Name] = {}
    overrides: Overrides = ()


class Pretraining(Frozen):
    """A base model that is pretrained from random weights of the model's shape."""

    steps: Annotated[tuple[TrainingStep, ...], Field(min_length=1)]


class Distillation(Frozen):
    """The three stages from a teacher to a HypeNet; `shape` is its config of configs/model."""

    shape: Annotated[str, Field(pattern=r"^hypenet_[a-z0-9_]+$")]
    align: TrainingStep
    distill: TrainingStep
    lengthen: TrainingStep


class ModelPlan(Frozen):
    """How a model and its fine-tunes are made and evaluated.

    Attributes:
        label: name of the model in the tables.
        shape: config of configs/model with the shape of the base model.
        base: a repository on the hub, or how the base model is pretrained.
        distillation: null if the base model itself is fine-tuned.
        finetunes: fine-tunes by the name that experiments use.
        frozen: fine-tunes of the row QK-Frozen, by the fine-tune that they are compared with.
        top_layers: restore W_Q and W_K of only the N most important softmax layers; null restores
            all.
        max_context_tokens: overrides the context limit of the model's config.
        attn_logits_scaling: overrides the logit scaling of a HypeNet's config during inference.
    """

    label: Text
    shape: Name
    base: Text | Pretraining
    distillation: Distillation | None = None
    finetunes: Mapping[Name, TrainingStep]
    frozen: Mapping[Name, TrainingStep] = {}
    top_layers: PositiveInt | None = None
    max_context_tokens: PositiveInt | None = None
    attn_logits_scaling: LogitsScaling | None = None


class SyntheticHaystack(Frozen):
    """Generated texts in which needles are hidden; `words` is the number of words per row."""

    rows: PositiveInt
    words: PositiveInt


class RecallPlan(NiahConfig):
    """NIAH: `haystack` is `hub` or generated; one stage evaluates `lengths_per_stage` lengths."""

    lengths_per_stage: PositiveInt
    haystack: Literal["hub"] | SyntheticHaystack


class ReasoningPlan(Frozen):
    """A reasoning benchmark; `generated_problems` null downloads its problems from the hub."""

    generated_problems: PositiveInt | None = None
    overrides: Overrides = ()


class Profile(Frozen):
    """The models of a scale, and how they are trained and evaluated.

    Attributes:
        scope: the scope of each experiment that applies to this profile.
        seeds: training seeds; every model is trained once per seed.
        tokenizer_seed: seed of the synthetic tokenizer; null to use each model's own tokenizer.
        gpus: number of GPUs per training or generation stage, 0 on a laptop.
        training_overrides: overrides of every training config.
        data_overrides: overrides of every data config.
        report_overrides: overrides of every report config.
    """

    name: Name
    scope: Name
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(unique)]
    tokenizer_seed: NonNegativeInt | None
    gpus: NonNegativeInt
    training_overrides: Overrides = ()
    data_overrides: Overrides = ()
    report_overrides: Overrides = ()
    models: Mapping[Name, ModelPlan]
    recall: RecallPlan
    reasoning: Mapping[Name, ReasoningPlan]

    @model_validator(mode="after")
    def _the_benchmarks_exist(self) -> Self:
        for task in self.reasoning:
            check_known("reasoning", task, list(REASONING_TASKS))
        return self


class Scope(Frozen):
    """The part of a profile that an experiment needs at one scale.

    `finetunes` are names of fine-tunes, both in the profile's models and in reports; `tasks` and
    `lengths` choose recall prompts, null for all of the profile; `reports` are names of configs in
    configs/report.
    """

    models: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(unique)]
    finetunes: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(unique)]
    tasks: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    reasoning: tuple[Name, ...]
    reports: Annotated[tuple[Name, ...], Field(min_length=1)]


class Experiment(Frozen):
    """A table or figure: its rows, and the part of a profile that it needs at each scale."""

    name: Name
    methods: Annotated[tuple[Method, ...], Field(min_length=1), AfterValidator(unique)]
    scopes: Annotated[Mapping[Name, Scope], Field(min_length=1)]


class ExperimentConfig(Frozen):
    """The configuration of one run: profile, experiment and restore variant."""

    profile: Profile
    experiment: Experiment
    restore: Variant

    @property
    def scope(self) -> Scope:
        """The experiment's scope for the profile."""
        return self.experiment.scopes[self.profile.scope]

    @model_validator(mode="after")
    def _the_profile_covers_the_scope(self) -> Self:
        profile, experiment = self.profile, self.experiment
        if profile.scope not in experiment.scopes:
            raise ValueError(
                f"experiment {experiment.name} is not defined for profile={profile.name}, only for "
                f"{', '.join(experiment.scopes)}"
            )
        recall = profile.recall
        for kind, names, known in (
            ("model", self.scope.models, profile.models),
            ("recall task", self.scope.tasks or (), recall.tasks),
            ("recall length", self.scope.lengths or (), recall.lengths),
            ("reasoning task", self.scope.reasoning, profile.reasoning),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"profile {profile.name} has no {kind} {name}")
        for model in self.scope.models:
            plan = profile.models[model]
            for finetune in self.scope.finetunes:
                if finetune not in plan.finetunes:
                    raise ValueError(f"model {model} has no fine-tune {finetune}")
                if "qk_frozen" in experiment.methods and finetune not in plan.frozen:
                    raise ValueError(f"model {model} has no frozen fine-tune {finetune}")
        return self


class Job(Frozen):
    """One experiment of a command line, and the overrides that select it."""

    config: ExperimentConfig
    overrides: Overrides


def load_jobs(overrides: Sequence[str]) -> tuple[Job, ...]:
    """Compose the experiments that a command line selects; `key=a,b` selects several.

    Args:
        overrides: `experiment=table1,table4 profile=tiny restore=qk,qk_blend`.

    Raises:
        UserError: a key, a value or an option is wrong; the message names its path.
    """
    if not any(override.lstrip("+").startswith("experiment=") for override in overrides):
        raise UserError(
            "no experiment selected", hint=f"experiment={'|'.join(options('experiment'))}"
        )
    return tuple(
        Job(config=load_root(job, ExperimentConfig), overrides=job)
        for job in expand_sweep(overrides)
    )
