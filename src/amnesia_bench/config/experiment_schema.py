"""Schemas of profiles and experiments.

A profile defines the models, their training and the size of the evaluations: `profile=paper`
reproduces the paper at full scale, `profile=tiny` runs the same stages on a laptop. An experiment
selects the models and tasks of a profile that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from amnesia_bench.config.analysis_schema import AnalysisKind, AnalysisPlan
from amnesia_bench.config.cluster_schema import LocalCluster, SlurmCluster
from amnesia_bench.config.eval_schema import NiahConfig
from amnesia_bench.config.files import options
from amnesia_bench.config.load import load_root
from amnesia_bench.config.messages import check_known
from amnesia_bench.config.overrides import expand_sweep
from amnesia_bench.config.schema import Frozen, Variant, unique
from amnesia_bench.config.selection_schema import LayerSelectionPlan
from amnesia_bench.config.tracking_schema import Tracking
from amnesia_bench.errors import UserError
from amnesia_bench.records.ids import REASONING_TASKS, EngineName, Method

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Text = Annotated[str, Field(min_length=1)]
Overrides = tuple[Text, ...]
LogitsScaling = Annotated[str, Field(pattern=r"^hype \d+(\.\d+)?$")]


HAYSTACK = "haystack"  # the name in `Profile.files` of the texts in which needles are hidden


class TrainingStep(Frozen):
    """One training run: a config of configs/train, and overrides for it.

    `data` names the config in configs/data for sources of the mixture; a source that it omits uses
    the config with the name of the source.
    """

    train: Name
    data: Mapping[str, Name] = {}
    overrides: Overrides = ()


class Pretraining(Frozen):
    """The training steps of a base model that is pretrained from random weights."""

    steps: Annotated[tuple[TrainingStep, ...], Field(min_length=1)]


class Distillation(Frozen):
    """The three training stages of a HypeNet.

    `shape` names its config in configs/model. With a `selection`, its softmax layers are selected
    after the first stage, instead of those in the config.
    """

    shape: Annotated[str, Field(pattern=r"^hypenet_[a-z0-9_]+$")]
    align: TrainingStep
    distill: TrainingStep
    lengthen: TrainingStep
    selection: LayerSelectionPlan | None = None


class ModelPlan(Frozen):
    """How a model and its fine-tunes are trained and evaluated.

    Attributes:
        label: name of the model in the tables.
        shape: name of the config in configs/model with the shape of the base model.
        base: repository of the base model on the hub, or the steps that pretrain it.
        distillation: how a HypeNet is distilled from the base model; null if the base model itself
            is fine-tuned.
        finetunes: training step of each fine-tune, by the name that experiments use.
        texts: data config with texts like those of the pretraining, on which restore variants
            measure losses; null uses the data of the last training before the fine-tune.
        frozen: training steps of the row QK-Frozen, by the name of the fine-tune with which each is
            compared.
        top_layers: restore only this number of softmax layers, the most important ones; null
            restores all layers that the variant selects.
        max_context_tokens: overrides the context limit in the model's config.
        attn_logits_scaling: overrides the logit scaling in a HypeNet's config during inference.
        analysis_data: the config in configs/data for sources of the profile's analyses; a source
            that it omits uses the profile's config.
    """

    label: Text
    shape: Name
    base: Text | Pretraining
    distillation: Distillation | None = None
    texts: Name | None = None
    finetunes: Mapping[Name, TrainingStep]
    frozen: Mapping[Name, TrainingStep] = {}
    top_layers: PositiveInt | None = None
    max_context_tokens: PositiveInt | None = None
    attn_logits_scaling: LogitsScaling | None = None
    analysis_data: Mapping[Name, Name] = {}


class SyntheticHaystack(Frozen):
    """Generated texts in which needles are hidden: `rows` texts of about `words` words each."""

    rows: PositiveInt
    words: PositiveInt


class RecallPlan(NiahConfig):
    """The NIAH evaluation of a profile.

    Each stage evaluates `lengths_per_stage` context lengths and `tasks_per_stage` tasks (null:
    all), so experiments that need only some of them share stages. The haystack consists of the
    essays on the hub (`hub`) or of generated texts. `prompt_seed` is the seed of the needles;
    lm-eval uses 0.
    """

    lengths_per_stage: PositiveInt
    tasks_per_stage: PositiveInt | None = None
    haystack: Literal["hub"] | SyntheticHaystack
    prompt_seed: NonNegativeInt = 0


class ReasoningPlan(Frozen):
    """How a profile evaluates a reasoning benchmark.

    `generated_problems` is the number of problems to generate; null downloads the benchmark's
    problems from the hub. `limit` uses only the first problems; null uses all. `overrides` are
    overrides for the benchmark's config.
    """

    generated_problems: PositiveInt | None = None
    limit: PositiveInt | None = None
    overrides: Overrides = ()


class Profile(Frozen):
    """The models at one scale, and how they are trained and evaluated.

    Attributes:
        scope: name of the scope to use in each experiment.
        seeds: training seeds; every model is trained once per seed.
        tokenizer_seed: seed of the synthetic tokenizer; null uses each model's own tokenizer.
        gpus: number of GPUs per training stage; 0 on a laptop. Ranking stages use at most one.
        gpus_per_evaluation: number of GPUs per evaluation stage, each with a copy of the model; no
            GPU is used if `gpus` is 0.
        max_hours_per_evaluation: an evaluation that is estimated to take longer is divided into
            parts, which are stages that run at the same time; null divides none. Neither the
            number of parts nor of GPUs affects the results.
        engine: the inference engine of recall and reasoning. Rankings ablate layers inside the
            model, so they always use transformers.
        training_overrides: overrides for every training config.
        data_overrides: overrides for every data config.
        report_overrides: overrides for every report config.
        models: the models by name.
        recall: the NIAH evaluation.
        reasoning: the reasoning benchmarks by name.
        files: your own files instead of those on the hub, by the name of what reads them: a data
            config, a benchmark of `reasoning`, `haystack`, or a task of a `selection`. Stages
            depend on the contents of a file, not on its path.
        analysis: the measurements of why recall is lost; null if no experiment has any.
    """

    name: Name
    scope: Name
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(unique)]
    tokenizer_seed: NonNegativeInt | None
    gpus: NonNegativeInt
    gpus_per_evaluation: PositiveInt
    max_hours_per_evaluation: PositiveFloat | None
    engine: EngineName
    training_overrides: Overrides = ()
    data_overrides: Overrides = ()
    report_overrides: Overrides = ()
    models: Mapping[Name, ModelPlan]
    recall: RecallPlan
    reasoning: Mapping[Name, ReasoningPlan]
    files: Mapping[Name, Text] = {}
    analysis: AnalysisPlan | None = None

    @model_validator(mode="after")
    def _the_benchmarks_exist(self) -> Self:
        for task in self.reasoning:
            check_known("reasoning", task, list(REASONING_TASKS))
        for reader in self.files:
            known = [HAYSTACK, *self.reasoning, *options("data"), *self._selection_tasks]
            check_known("files", reader, known)
        return self

    @property
    def _selection_tasks(self) -> list[str]:
        distillations = [plan.distillation for plan in self.models.values() if plan.distillation]
        selections = [steps.selection for steps in distillations if steps.selection]
        return list(dict.fromkeys(task for selection in selections for task in selection.tasks))

    @model_validator(mode="after")
    def _evaluations_use_no_other_gpus(self) -> Self:
        if 0 < self.gpus < self.gpus_per_evaluation:
            raise ValueError(
                f"gpus_per_evaluation {self.gpus_per_evaluation} is above gpus {self.gpus}"
            )
        return self


class Scope(Frozen):
    """The part of a profile that an experiment needs at one scale.

    `finetunes` are names of fine-tunes, in the profile's models as well as in reports. `tasks` and
    `lengths` select recall prompts; null selects all tasks or lengths of the profile. `reasoning`
    are names of reasoning benchmarks, `reports` are names of configs in configs/report. `analyses`
    maps each kind of analysis to the models that it measures; maps and divergences are those of the
    models' fine-tunes among `finetunes`.
    """

    models: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(unique)]
    finetunes: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(unique)]
    tasks: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    reasoning: tuple[Name, ...]
    reports: Annotated[tuple[Name, ...], Field(min_length=1)]
    analyses: Mapping[AnalysisKind, tuple[Name, ...]] = {}


class Experiment(Frozen):
    """A table or figure: its methods (rows), and the scope that it needs at each scale."""

    name: Name
    methods: Annotated[tuple[Method, ...], Field(min_length=1), AfterValidator(unique)]
    scopes: Annotated[Mapping[Name, Scope], Field(min_length=1)]


class ExperimentConfig(Frozen):
    """The configuration of one run: cluster, profile, experiment, restore variant and tracking."""

    cluster: LocalCluster | SlurmCluster = Field(discriminator="kind")
    profile: Profile
    experiment: Experiment
    restore: Variant
    tracking: Tracking

    @property
    def scope(self) -> Scope:
        """The scope of the experiment that the profile selects."""
        return self.experiment.scopes[self.profile.scope]

    @model_validator(mode="after")
    def _an_evaluation_runs_on_one_node(self) -> Self:
        needed = min(self.profile.gpus, self.profile.gpus_per_evaluation)
        if isinstance(self.cluster, SlurmCluster) and needed > self.cluster.gpus_per_node:
            raise ValueError(
                f"profile.gpus_per_evaluation {needed} is above cluster.gpus_per_node "
                f"{self.cluster.gpus_per_node}, and only trainings run on several nodes"
            )
        return self

    @model_validator(mode="after")
    def _the_profile_covers_the_scope(self) -> Self:
        profile, experiment = self.profile, self.experiment
        if profile.scope not in experiment.scopes:
            raise ValueError(
                f"experiment {experiment.name} is not defined for profile={profile.name}, only for "
                f"{', '.join(experiment.scopes)}"
            )
        recall = profile.recall
        analysed = [model for models in self.scope.analyses.values() for model in models]
        for kind, names, known in (
            ("model", (*self.scope.models, *analysed), profile.models),
            ("recall task", self.scope.tasks or (), recall.tasks),
            ("recall length", self.scope.lengths or (), recall.lengths),
            ("reasoning task", self.scope.reasoning, profile.reasoning),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"profile {profile.name} has no {kind} {name}")
        if self.scope.analyses and profile.analysis is None:
            raise ValueError(
                f"experiment {experiment.name} has analyses, and profile {profile.name} has no "
                "`analysis:` with their sizes"
            )
        for model in self.scope.models:
            plan = profile.models[model]
            for finetune in self.scope.finetunes:
                if finetune not in plan.finetunes:
                    raise ValueError(f"model {model} has no fine-tune {finetune}")
                if "qk_frozen" in experiment.methods and finetune not in plan.frozen:
                    raise ValueError(f"model {model} has no frozen fine-tune {finetune}")
        return self


class Job(Frozen):
    """One experiment that a command line selects, and the overrides that select it."""

    config: ExperimentConfig
    overrides: Overrides


def load_jobs(overrides: Sequence[str]) -> tuple[Job, ...]:
    """Load every experiment that a command line selects; `key=a,b` selects several.

    Args:
        overrides: for example `experiment=table1,table4`, `profile=tiny`, `restore=qk,qk_blend`.

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
