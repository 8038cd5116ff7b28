"""The stages that create the checkpoints of one model and training seed, and their inputs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, cached_property

from amnesia_bench.config.analysis_schema import AnalysisPlan
from amnesia_bench.config.data_schema import SyntheticSource
from amnesia_bench.config.experiment_schema import (
    HAYSTACK,
    Job,
    ModelPlan,
    Pretraining,
    Profile,
    RecallPlan,
    TrainingStep,
)
from amnesia_bench.config.load import load_variant
from amnesia_bench.config.schema import LayerFisher, MeasuredRule, Variant
from amnesia_bench.config.selection_schema import GENERATED_DOCUMENTS, LayerSelectionPlan
from amnesia_bench.costs.work import Training
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline import evaluations, stages
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.requests.engines import EngineChoice

_variant = cache(load_variant)  # loading a config takes 50 ms, and all seeds share one
_imported = cache(stages.imported)  # hashes a file


class ModelStages:
    """The stages that create the checkpoints of one model and seed."""

    def __init__(self, profile: Profile, plan: ModelPlan, seed: int) -> None:
        self.profile = profile
        self.plan = plan
        self.seed = seed

    @property
    def engine(self) -> EngineChoice:
        """The engine for reasoning benchmarks."""
        return EngineChoice(
            name=self.profile.engine,
            attn_logits_scaling=self.plan.attn_logits_scaling,
        )

    @property
    def recall_engine(self) -> EngineChoice:
        """The engine for recall, whose prompts may exceed the context limit in the config."""
        limit = self.plan.max_context_tokens
        return self.engine.model_copy(update={"max_context_tokens": limit})

    @cached_property
    def _tokenizer(self) -> Stage:
        """The stage whose artifact contains the tokenizer."""
        if self.profile.tokenizer_seed is not None:
            return stages.tokenizer(self.profile.tokenizer_seed)
        return self._base

    @cached_property
    def _base(self) -> Stage:
        plan = self.plan
        if not isinstance(plan.base, Pretraining):
            return stages.downloaded(plan.base, plan.shape)
        checkpoint = stages.initial(plan.shape, self._tokenizer, self.seed)
        for step in plan.base.steps:
            trained = self._trained(step, checkpoint, None)
            assert isinstance(trained.work, Training)
            checkpoint = replace(trained, work=replace(trained.work, of_base=True))
        return checkpoint

    @cached_property
    def _pre(self) -> Stage:
        steps = self.plan.distillation
        if steps is None:
            return self._base
        teacher = self._base
        student = stages.converted(steps.shape, teacher, None, self.seed)
        student = self._trained(steps.align, student, teacher)
        selection = None
        if steps.selection is not None:
            selection = self._selection(steps.selection, teacher, student)
        hybrid = stages.converted(steps.shape, teacher, student, self.seed, selection)
        hybrid = self._trained(steps.distill, hybrid, teacher)
        return self._trained(steps.lengthen, hybrid, None)

    def _selection(self, plan: LayerSelectionPlan, teacher: Stage, student: Stage) -> Stage:
        """Return the stage that selects the layers of the teacher that stay softmax attention."""
        documents = {task: self.file(task) for task in plan.tasks}
        if plan.generated_rows is not None:
            for task in plan.tasks:
                generator = GENERATED_DOCUMENTS[task]
                source = SyntheticSource(generator=generator, rows=plan.generated_rows, words=None)
                documents[task] = documents[task] or stages.rows(source)
        known = {task: stage for task, stage in documents.items() if stage is not None}
        scores = evaluations.layer_scores(teacher, student, plan, known)
        return evaluations.selection(replace(scores, gpus=min(1, self.profile.gpus)), plan)

    @cached_property
    def prompts(self) -> Stage:
        """The stage that builds the recall prompts, which all checkpoints share."""
        return self._prompts(self.profile.recall)

    def analysis_prompts(self, plan: AnalysisPlan) -> Stage:
        """Return the stage that builds the prompts on which attention is measured."""
        changes = {"tasks": (plan.task,), "lengths": (plan.length,), "samples": plan.prompts}
        stage = self._prompts(self.profile.recall.model_copy(update=changes))
        return replace(stage, name=f"{stage.name}-{plan.task}-{plan.length}")

    def analysis_data(self, sources: tuple[str, ...]) -> dict[str, Stage]:
        """Return the stages that prepare the data of analyses, by source."""
        assert self.profile.analysis is not None  # checked when the config is loaded
        configs = {**self.profile.analysis.data, **self.plan.analysis_data}
        return {name: self._data(configs[name]) for name in sources}

    def finetune_data(self, finetune: str) -> tuple[str, Stage]:
        """Return the largest source of a fine-tune, and the stage that prepares it."""
        return self._largest_source(self.plan.finetunes[finetune])

    def _prompts(self, plan: RecallPlan) -> Stage:
        haystack = self.file(HAYSTACK)
        if haystack is None and plan.haystack != "hub":
            haystack = stages.rows(
                SyntheticSource(
                    generator="haystack",
                    rows=plan.haystack.rows,
                    words=plan.haystack.words,
                    seed=self.seed,
                )
            )
        return evaluations.prompts(plan, self._tokenizer, haystack)

    def file(self, reader: str) -> Stage | None:
        """The stage with the user's file for a reader in `Profile.files`; None without one."""
        path = self.profile.files.get(reader)
        return None if path is None else _imported(reader, path)

    def _data(self, config: str) -> Stage:
        overrides = self.profile.data_overrides
        return stages.data(config, overrides, self._tokenizer, self.file(config))

    def checkpoint(self, finetune: str, method: str, job: Job) -> Stage:
        """Return the stage that creates the checkpoint of a row."""
        if method == "pre":
            return self._pre
        if method == "qk_frozen":
            return self._trained(self.plan.frozen[finetune], self._pre, None)
        post = self._trained(self.plan.finetunes[finetune], self._pre, None)
        if method == "post":
            return post
        variant = job.config.restore if method == "restored" else _variant(method)
        ranked = None if variant.select.whole_checkpoint else self._ranking
        return stages.restored(self._pre, post, variant, ranked, self._measurement(post, variant))

    @cached_property
    def _ranking(self) -> tuple[int, Stage] | None:
        """The number of layers to restore, and the stage that ranks them."""
        if self.plan.top_layers is None:
            return None
        ranking = replace(evaluations.ranking(self._pre), gpus=min(1, self.profile.gpus))
        return self.plan.top_layers, ranking

    def _measurement(self, post: Stage, variant: Variant) -> Stage | None:
        if not isinstance(variant.rule, MeasuredRule):
            return None
        data = None if isinstance(variant.rule, LayerFisher) else self._data_of_pre(variant)
        stage = stages.measurement(self._pre, post, variant, data)
        return replace(stage, gpus=min(1, self.profile.gpus))

    def _data_of_pre(self, variant: Variant) -> Stage:
        """Return the largest source of the last training before the fine-tune, or the plan's texts.

        Losses are measured on it, because its texts are what the fine-tune should not lose.
        """
        plan, steps = self.plan, self.plan.distillation
        if plan.texts is not None:
            return self._data(plan.texts)
        if steps is not None:
            step = steps.lengthen
        elif isinstance(plan.base, Pretraining):
            step = plan.base.steps[-1]
        else:
            raise UserError(
                f"{plan.label}: variant {variant.name} measures losses on the data of the last "
                "training before the fine-tune, and this profile does not train this model before",
                hint="Name a data config with such texts (`texts` of the model), or use your own "
                "data: amnesia measure --data DIR, then amnesia restore.",
            )
        return self._largest_source(step)[1]

    def _largest_source(self, step: TrainingStep) -> tuple[str, Stage]:
        mixture = stages.training_of(step, self.profile.training_overrides, self.seed).train.mixture
        source = max(mixture, key=lambda name: mixture[name])
        return source, self._data(step.data.get(source, source))

    def _trained(self, step: TrainingStep, init: Stage, teacher: Stage | None) -> Stage:
        profile = self.profile
        run = stages.training_of(step, profile.training_overrides, self.seed)
        data = {source: self._data(step.data.get(source, source)) for source in run.train.mixture}
        stage = stages.trained(step, run, init, data, teacher)
        return replace(stage, gpus=profile.gpus)
