"""Have mixes answer needle prompts and problems; answers are journaled, so a killed run resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from amnesia_bench.config.eval_schema import EvalConfig
from amnesia_bench.inference.candidates import Candidate
from amnesia_bench.inference.protocol import Engine, OnDemand, PromptRequest
from amnesia_bench.reasoning.answering import AnswerPlan, answer_problems
from amnesia_bench.reasoning.documents import chosen_problems
from amnesia_bench.reasoning.score import attempts_of
from amnesia_bench.reasoning.task import ProblemSet, ReasoningTask
from amnesia_bench.recall.measure import prompt_requests, recall_samples
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Outcome, Sampling
from amnesia_bench.tokenizers.chat_format import PromptFormat
from amnesia_bench.tuning.questions import Needles
from amnesia_bench.tuning.racing import Objective
from amnesia_bench.tuning.space import Mix
from amnesia_bench.tuning.swapping import MixEngine, SwappedModel


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """What all evaluations of a search have in common.

    Attributes:
        model: the model that becomes each mix.
        engine: the engine that runs it, with its wrappers.
        pre, post: the checkpoints; their identities and the mix identify an answer.
        task, config, layout: the benchmark, its sampling settings and its prompt format.
        sampling: the sampling settings of needle prompts.
        work: folder of the answers.
    """

    model: SwappedModel
    engine: Engine
    pre: Candidate
    post: Candidate
    task: ReasoningTask
    config: EvalConfig
    layout: PromptFormat
    sampling: Sampling
    work: Path

    def candidate(self, mix: Mix) -> Candidate:
        """Return a mix as a candidate; without a share of pre, its answers are those of post."""
        if not mix.shares:
            return self.post
        depends = {
            "pre": self.pre.parent.identity,
            "post": self.post.parent.identity,
            "mix": mix.sha256,
        }
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        parent = Parent(role="mix", location=mix.described(), identity=f"mix:{digest}")
        return replace(self.post, role="mix", method="mix", parent=parent)

    def recall(self, engine: Engine, candidate: Candidate, asked: Needles) -> tuple[bool, ...]:
        """Return whether a candidate answers each needle prompt correctly.

        Args:
            engine: answers as the candidate.
            candidate: identifies the answers.
            asked: the prompts.
        """
        correct: dict[tuple[str, int], bool] = {}
        for prompt_set in {needle.prompt_set: None for needle in asked}:
            docs = sorted(needle.doc for needle in asked if needle.prompt_set is prompt_set)
            every = prompt_requests(prompt_set, len(prompt_set), self.sampling, candidate.tokenizer)
            requests = OnDemand(partial(_request, every), docs)
            for sample in recall_samples(engine, candidate, requests, prompt_set, self.work):
                correct[prompt_set.sha256, sample.key.doc] = sample.correct
        return tuple(correct[needle.prompt_set.sha256, needle.doc] for needle in asked)

    def reasoning(
        self, engine: Engine, candidate: Candidate, asked: ProblemSet
    ) -> tuple[bool, ...]:
        """Return whether a candidate answers each problem correctly; see `recall`."""
        plan = AnswerPlan(
            model=candidate.folder.resolve().name,
            method=candidate.method,
            checkpoint=candidate.parent.identity,
            config=self.config,
            layout=self.layout,
        )
        depends = {
            **engine.settings,
            "checkpoint": plan.checkpoint,
            "problems": asked.sha256,
            "config": plan.config.model_dump(mode="json"),
            "chat_template": plan.layout.sha256,
        }
        name = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.work / "generations" / self.task.name / name
        answered = answer_problems(engine, candidate.tokenizer, self.task, asked, plan, folder)
        judge = next(iter(self.task.scorers.values()))
        verdicts = judge(asked.rows, attempts_of(answered.run, answered.generations)).verdicts
        return tuple(verdict.outcome is Outcome.CORRECT for verdict in verdicts)


class ModelEvaluator:
    """The `Evaluator` of racing, with a model that answers.

    Args:
        examiner: the model and the settings.
        needles: the needle prompts, in the order of the questions.
        problems: the problems, in the order of the questions.
        progress: called with one line of text before a mix answers.
    """

    def __init__(
        self,
        examiner: Examiner,
        needles: Needles,
        problems: ProblemSet,
        progress: Callable[[str], None],
    ) -> None:
        self._examiner, self._needles, self._problems = examiner, needles, problems
        self._progress = progress
        self._blocks: dict[Objective, tuple[int, int]] = {}
        self._forget()

    def _forget(self) -> None:
        """Drop what the lower layers did for earlier questions, which is of no use for others."""
        if self._examiner.model.memo is not None:
            self._examiner.model.memo.forget()

    def answers(self, mix: Mix, objective: Objective, start: int, stop: int) -> tuple[bool, ...]:
        """Return whether the mix answers each of the questions from `start` to `stop` correctly."""
        examiner = self._examiner
        if self._blocks.setdefault(objective, (start, stop)) != (start, stop):
            self._blocks = {objective: (start, stop)}
            self._forget()
        engine = MixEngine(examiner.model, examiner.engine, mix)
        candidate = examiner.candidate(mix)
        if objective is Objective.RECALL:
            self._progress(f"prompts {start + 1} to {stop}: {mix.described()}")
            return examiner.recall(engine, candidate, self._needles[start:stop])
        self._progress(f"problems {start + 1} to {stop}: {mix.described()}")
        asked = chosen_problems(self._problems, range(start, stop))
        return examiner.reasoning(engine, candidate, asked)


def _request(requests: Sequence[PromptRequest], position: int) -> PromptRequest:
    return requests[position]
