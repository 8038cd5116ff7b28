"""What is run together: a profile says on which models and how large, an experiment what of it.

`profile=paper` is the paper at full scale, `profile=tiny` the same stages on a laptop. Every
experiment says which of a profile's models and tasks it needs.
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
    """One run of training: a config of configs/train and what is changed of it.

    `data` names the config of configs/data of each source whose name in the mixture is another.
    """

    train: Name
    data: Mapping[str, Name] = {}
    overrides: Overrides = ()


class Pretraining(Frozen):
    """A base that is trained on the spot, from random weights of the model's shape."""

    steps: Annotated[tuple[TrainingStep, ...], Field(min_length=1)]


class Distillation(Frozen):
    """The three stages that make a HypeNet of a teacher; `shape` is its config of configs/model."""

    shape: Annotated[str, Field(pattern=r"^hypenet_[a-z0-9_]+$")]
    align: TrainingStep
    distill: TrainingStep
    lengthen: TrainingStep


class ModelPlan(Frozen):
    """How a row of models comes to be, up to its fine-tunes.

    Attributes:
        label: its name in the tables.
        shape: the config of configs/model that tells how large the base is.
        base: a repository of the hub, or how one is pretrained.
        distillation: null where the base itself is what is fine-tuned.
        finetunes: by the name that experiments use.
        frozen: the fine-tune of the row QK-Frozen, by the fine-tune it is compared with.
        top_layers: of how many softmax layers, by importance, W_Q and W_K are restored; null: all.
        max_context_tokens: in place of the limit in its config.
        attn_logits_scaling: of a HypeNet's softmax layers where it answers; null: its config's.
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
    """Generated texts to hide needles in, of so many rows and words."""

    rows: PositiveInt
    words: PositiveInt


class RecallPlan(NiahConfig):
    """NIAH: `haystack` is `hub`, or generated; a stage asks `lengths_per_stage` of the lengths."""

    lengths_per_stage: PositiveInt
    haystack: Literal["hub"] | SyntheticHaystack


class ReasoningPlan(Frozen):
    """A benchmark of reasoning; `generated_problems` null takes its own problems from the hub."""

    generated_problems: PositiveInt | None = None
    overrides: Overrides = ()


class Profile(Frozen):
    """Which models there are, and how they are trained and measured.

    Attributes:
        scope: which of an experiment's scopes is meant.
        tokenizer_seed: of the tokenizer of generated texts; null where models bring theirs.
        gpus: how many a stage of training or generation takes, 0 on a laptop.
        training_overrides: of every training.
        data_overrides: of every source of data.
        report_overrides: of every report.
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
    """What an experiment means at one scale.

    `finetunes` are the names of the profile's models, and those that reports know them by;
    `tasks` and `lengths` are those of recall, null for all of the profile; `reports` are configs of
    configs/report.
    """

    models: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(unique)]
    finetunes: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(unique)]
    tasks: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    reasoning: tuple[Name, ...]
    reports: Annotated[tuple[Name, ...], Field(min_length=1)]


class Experiment(Frozen):
    """A table or a figure: its rows for each fine-tune, by scope."""

    name: Name
    methods: Annotated[tuple[Method, ...], Field(min_length=1), AfterValidator(unique)]
    scopes: Annotated[Mapping[Name, Scope], Field(min_length=1)]


class ExperimentConfig(Frozen):
    """Everything a run is made of."""

    profile: Profile
    experiment: Experiment
    restore: Variant

    @property
    def scope(self) -> Scope:
        """What the experiment means under the profile."""
        return self.experiment.scopes[self.profile.scope]

    @model_validator(mode="after")
    def _the_profile_has_what_is_asked(self) -> Self:
        profile, experiment = self.profile, self.experiment
        if profile.scope not in experiment.scopes:
            raise ValueError(
                f"experiment {experiment.name} is not defined for profile={profile.name}, only for "
                f"{', '.join(experiment.scopes)}"
            )
        recall = profile.recall
        for what, asked, known in (
            ("model", self.scope.models, profile.models),
            ("task of recall", self.scope.tasks or (), recall.tasks),
            ("length of recall", self.scope.lengths or (), recall.lengths),
            ("reasoning task", self.scope.reasoning, profile.reasoning),
        ):
            for name in asked:
                if name not in known:
                    raise ValueError(f"profile {profile.name} has no {what} {name}")
        for model in self.scope.models:
            plan = profile.models[model]
            for finetune in self.scope.finetunes:
                if finetune not in plan.finetunes:
                    raise ValueError(f"model {model} has no fine-tune {finetune}")
                if "qk_frozen" in experiment.methods and finetune not in plan.frozen:
                    raise ValueError(f"model {model} has no frozen fine-tune {finetune}")
        return self


class Job(Frozen):
    """One experiment of a command line, and the overrides that made it."""

    config: ExperimentConfig
    overrides: Overrides


def load_jobs(overrides: Sequence[str]) -> tuple[Job, ...]:
    """Compose the experiments that a command line asks for; `a,b` behind a key asks for several.

    Args:
        overrides: `experiment=table1,table4 profile=tiny restore=qk,qk_blend`.

    Raises:
        UserError: a key, a value or an option is wrong; the message names its path.
    """
    if not any(override.lstrip("+").startswith("experiment=") for override in overrides):
        raise UserError(
            "no experiment was named", hint=f"experiment={'|'.join(options('experiment'))}"
        )
    return tuple(
        Job(config=load_root(job, ExperimentConfig), overrides=job)
        for job in expand_sweep(overrides)
    )
