"""Open and check everything that a search needs, before the first model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench.config.load import load_niah, load_variant
from amnesia_bench.config.schema import Select
from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import Candidate, open_candidates
from amnesia_bench.inference.load_engine import check_hypenet
from amnesia_bench.inference.protocol import EngineOptions, HeldEngine, ProgressEngine
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.reasoning.code.livecodebench import ProgramScorer
from amnesia_bench.reasoning.documents import task_documents, window_of
from amnesia_bench.reasoning.task import ProblemSet, ReasoningTask
from amnesia_bench.reasoning.tasks import task_named
from amnesia_bench.recall.check import ERROR_RATE
from amnesia_bench.recall.measure import PromptSetChoice, open_single_needle_sets
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING
from amnesia_bench.requests.checkpoints import RestoreRequest
from amnesia_bench.requests.tuning import ReasoningProblems, TuneRequest
from amnesia_bench.store.layout import store_root
from amnesia_bench.surgery.layer_values import refuse_adapters
from amnesia_bench.surgery.plan import PlannedTensor
from amnesia_bench.surgery.restoration import RestoreJob, prepare_restore
from amnesia_bench.tokenizers.chat_format import prompt_format
from amnesia_bench.tuning.evaluation import Examiner
from amnesia_bench.tuning.questions import Needles, split_problems, split_prompts
from amnesia_bench.tuning.racing import RaceRules
from amnesia_bench.tuning.space import TUNED_ROLES, Mix
from amnesia_bench.tuning.swapping import SwappedModel


@dataclass(frozen=True, kw_only=True)
class TuningInputs:
    """The checkpoints and the questions: those of the search, and fresh ones that confirm it.

    `job` plans the weights with a place, `rest` are all others; it is empty if they cannot be
    restored.
    """

    job: RestoreJob
    rest: tuple[PlannedTensor, ...]
    pre: Candidate
    post: Candidate
    task: ReasoningTask
    needles: Needles
    fresh_needles: Needles
    problems: ProblemSet
    fresh_problems: ProblemSet
    rules: RaceRules

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are tuned."""
        return tuple(plan.layer for plan in self.job.plans if plan.layer is not None)


def open_inputs(request: TuneRequest) -> TuningInputs:
    """Open the checkpoints and the questions of a search.

    Raises:
        UserError, MissingEnvironmentError: see `tune`.
    """
    task, config = _task(request.reasoning), request.reasoning.config
    job = _plan(request)
    pre, post = open_candidates({"pre": request.pre, "post": request.post})
    choice = PromptSetChoice(tasks=request.tasks, lengths=request.lengths, samples=None)
    prompt_sets, fresh = (
        None if folder is None else open_single_needle_sets(folder, (pre, post), choice)
        for folder in (request.prompts, request.fresh_prompts)
    )
    assert prompt_sets is not None  # the request has prompts
    needles, fresh_needles = split_prompts(prompt_sets, fresh, request.samples, request.seed)
    available = task_documents(task, request.reasoning.data, None, window_of(config))
    problems, fresh_problems = split_problems(available, request.reasoning.problems, request.seed)
    rules = RaceRules(
        prompts=len(needles),
        problems=len(problems.rows),
        budget=request.budget,
        error_rate=ERROR_RATE,
    )
    rules.check_budget()
    return TuningInputs(
        job=job,
        rest=plan_rest(job),
        pre=pre,
        post=post,
        task=task,
        needles=needles,
        fresh_needles=fresh_needles,
        problems=problems,
        fresh_problems=fresh_problems,
        rules=rules,
    )


def _task(reasoning: ReasoningProblems) -> ReasoningTask:
    task = task_named(reasoning.task)
    if any(isinstance(scorer, ProgramScorer) for scorer in task.scorers.values()):
        raise UserError(
            f"--reasoning {task.name}: its answers are programs, which tune does not run",
            hint="Choose a benchmark without programs: gsm8k, math500, aime24 or ifeval.",
        )
    if type(reasoning.config) is not task.config:
        raise UserError(
            f"config: is a {type(reasoning.config).__name__}, but {task.name} needs a "
            f"{task.config.__name__}",
            hint=f"load_eval({task.name!r}, ['eval.repeats=1']) returns one.",
        )
    return task


def _plan(request: TuneRequest) -> RestoreJob:
    """Plan a restore of all roles that can be tuned and that the model has."""
    qk = load_variant("qk")
    whole = RestoreRequest(pre=request.pre, post=request.post, variant=qk, cast=request.cast)
    planned = prepare_restore(whole)
    layers = {plan.layer for plan in planned.plans}
    own = {tensor.role for tensor in planned.pair.attention.tensors if tensor.layer in layers}
    roles = tuple(role for role in TUNED_ROLES if role in own)
    variant = qk.model_copy(update={"select": Select(roles=roles)})
    job = prepare_restore(whole.model_copy(update={"variant": variant}))
    for plan in job.plans:
        refuse_adapters(plan.tensors)
    return job


def plan_rest(job: RestoreJob) -> tuple[PlannedTensor, ...]:
    """Return all weights without a place, or none if the checkpoints do not match in all weights.

    They may have different vocabularies, for example.
    """
    places = {
        (tensor.layer, tensor.role): None
        for plan in job.plans
        for tensor in plan.tensors
        if tensor.layer is not None and tensor.role is not None
    }
    variant = Mix.of({}, rest=1.0).variant("rest", tuple(places))
    try:
        whole = prepare_restore(job.request.model_copy(update={"variant": variant}))
    except UserError:
        return ()
    return tuple(
        tensor
        for plan in whole.plans
        for tensor in plan.tensors
        if (tensor.layer, tensor.role) not in places
    )


def open_examiner(
    request: TuneRequest, inputs: TuningInputs, count: Callable[[int, int], None]
) -> Examiner:
    """Load the model of post, which becomes each candidate.

    Raises:
        UserError: the model cannot be loaded, its weights cannot be exchanged, or its tokenizer has
            no chat template.
    """
    config = request.reasoning.config
    layout = prompt_format(
        inputs.post.tokenizer, chat=config.chat_template, template=None, think=config.think
    )
    engine = TransformersEngine.load(request.post, engine_options(request))
    held = HeldEngine(engine, inputs.pre.held + inputs.post.held)
    return Examiner(
        model=SwappedModel(engine, inputs.job.pair, inputs.job.plans, inputs.rest),
        engine=ProgressEngine(held, count),
        pre=inputs.pre,
        post=inputs.post,
        task=inputs.task,
        config=config,
        layout=layout,
        sampling=replace(
            NIAH_SAMPLING,
            max_new_tokens=request.max_new_tokens or load_niah("check").max_new_tokens,
        ),
        work=request.work or store_root(),
    )


def engine_options(request: TuneRequest) -> EngineOptions:
    """Return the engine options of pre and post.

    Raises:
        UserError: the logit scaling of HypeNet was given for another model.
    """
    if request.engine.attn_logits_scaling is not None:
        check_hypenet(request.post)
    return EngineOptions(
        max_context_tokens=request.engine.max_context_tokens,
        attn_logits_scaling=request.engine.attn_logits_scaling,
    )


def settings_of(request: TuneRequest, examiner: Examiner) -> Mapping[str, str]:
    """Return the settings on which the result depends, besides checkpoints and candidates."""
    reasoning = request.reasoning
    return {
        **examiner.engine.settings,
        "other_weights": "searched" if examiner.model.can_change_rest else "of post",
        "prompts": _name(request.prompts),
        "fresh_prompts": "half of prompts"
        if request.fresh_prompts is None
        else _name(request.fresh_prompts),
        "reasoning": reasoning.task,
        "reasoning_config": reasoning.config.model_dump_json(),
        "max_new_tokens": str(examiner.sampling.max_new_tokens),
        "seed": str(request.seed),
    }


def _name(folder: Path) -> str:
    return folder.resolve().name
