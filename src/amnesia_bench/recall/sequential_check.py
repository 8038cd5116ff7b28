"""Compare checkpoints on the same prompts until the verdict is clear.

Pre and post answer a few prompts at a time, those with the longest contexts first. At each look,
the test of `recall.sequential` decides which prompt sets have a clear verdict. All answers are
written by `inference.generation`, so a check that was killed resumes where it stopped.
"""

from __future__ import annotations

import gc
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.inference.candidates import Candidate
from amnesia_bench.inference.protocol import Engine
from amnesia_bench.recall.measure import (
    PromptSet,
    prompt_requests,
    recall_cell,
    recall_of,
    recall_samples,
    sampling_settings,
)
from amnesia_bench.recall.niah.catalogue import find_task, task_sampling
from amnesia_bench.recall.paired_scores import PairedScores
from amnesia_bench.recall.sequential import judge, looks
from amnesia_bench.records.evaluation import Cell, Sampling
from amnesia_bench.records.recall import (
    CheckedPromptSet,
    CheckReport,
    CheckVerdict,
    Comparison,
    RecallSample,
    Rule,
    heat_map,
)
from amnesia_bench.statistics.intervals import paired_difference

Samples = tuple[RecallSample, ...]


@dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """The checkpoints to compare, the prompts, and the decision rule.

    Some tasks allow fewer tokens per answer than `sampling`; see `sampling_of`.
    """

    pre: Candidate
    post: Candidate
    restored: Candidate | None
    prompt_sets: tuple[PromptSet, ...]
    sampling: Sampling
    rule: Rule

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Pre, post and, if present, the restored checkpoint."""
        return (self.pre, self.post, *([self.restored] if self.restored else []))

    def sampling_of(self, prompt_set: PromptSet) -> Sampling:
        """Return the sampling parameters for the prompts of a set."""
        return task_sampling(prompt_set.task, self.sampling)


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The report with the verdict, and the cells and scored answers that it is based on."""

    report: CheckReport
    cells: tuple[Cell, ...]
    samples: Samples


def compare_checkpoints(
    plan: CheckPlan,
    load: Callable[[Candidate], Engine],
    work: Path,
    progress: Callable[[str], None],
) -> CheckResult:
    """Compare the checkpoints of a plan until the verdict is clear or no prompts remain.

    Args:
        plan: checkpoints whose tokenizers give the same token ids for the prompts, and prompt sets
            of at least `rule.samples` prompts each.
        load: loads a checkpoint into an engine; only one checkpoint is in memory at a time.
        work: folder for the answers; existing answers are reused.
        progress: called with one line of text before a checkpoint answers prompts, and after each
            verdict.
    """
    run = _Run(plan, load, work, progress)
    run.compare()
    if plan.restored is not None:
        for prompt_set in plan.prompt_sets:
            if history := run.history[prompt_set.name]:
                run.answer(plan.restored, prompt_set, history[-1].n)
    return run.result()


class _Run:
    def __init__(
        self,
        plan: CheckPlan,
        load: Callable[[Candidate], Engine],
        work: Path,
        progress: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.work = work
        self.progress = progress
        self.load = load
        self.engine: tuple[Candidate, Engine] | None = None
        self.settings: dict[str, dict[str, str]] = {}
        self.samples: dict[tuple[str, str], Samples] = {}
        self.history: dict[str, list[PairedScores]] = {
            prompt_set.name: [] for prompt_set in plan.prompt_sets
        }
        self.verdicts = {prompt_set.name: CheckVerdict.UNDECIDED for prompt_set in plan.prompt_sets}

    def compare(self) -> None:
        """Test all prompt sets, the longest first, until all are clear or one has regressed."""
        lengths = sorted(
            {prompt_set.context_tokens for prompt_set in self.plan.prompt_sets}, reverse=True
        )
        for look in looks(self.plan.rule.samples):
            for length in lengths:
                undecided = [
                    prompt_set
                    for prompt_set in self.plan.prompt_sets
                    if prompt_set.context_tokens == length
                    and self.verdicts[prompt_set.name] is CheckVerdict.UNDECIDED
                ]
                self.look(undecided, look)
                if CheckVerdict.REGRESSION in self.verdicts.values():
                    return

    def look(self, prompt_sets: Sequence[PromptSet], num_prompts: int) -> None:
        """Run pre and post on the first `num_prompts` prompts of each set, and test each set."""
        pair = [self.plan.pre, self.plan.post]
        # Start with the checkpoint that is already in memory, to halve the number of model loads.
        if self.engine is not None and self.engine[0] is self.plan.post:
            pair.reverse()
        for candidate in pair:
            for prompt_set in prompt_sets:
                self.answer(candidate, prompt_set, num_prompts)
        for prompt_set in prompt_sets:
            pre, post = (self.samples[role, prompt_set.name] for role in ("pre", "post"))
            self.history[prompt_set.name].append(paired_scores(pre, post))
            verdict = judge(
                self.history[prompt_set.name], self.plan.rule, len(self.plan.prompt_sets)
            )
            self.verdicts[prompt_set.name] = verdict
            scores = ", ".join(
                f"{role} {sum(sample.score for sample in samples):.4g}"
                for role, samples in (("pre", pre), ("post", post))
            )
            self.progress(f"{prompt_set.name}: {scores} of {num_prompts}: {verdict.value}")

    def answer(self, candidate: Candidate, prompt_set: PromptSet, num_prompts: int) -> None:
        """Run one checkpoint on the first `num_prompts` prompts of a set, and keep the answers."""
        if self.engine is None or self.engine[0] is not candidate:
            # Free the previous model before loading the next one: memory may not suffice for both.
            self.engine = None
            gc.collect()
            self.engine = (candidate, self.load(candidate))
        self.progress(f"{prompt_set.name}: {candidate.role} answers {num_prompts} prompts")
        engine = self.engine[1]
        self.settings[candidate.role] = dict(engine.settings)
        requests = prompt_requests(
            prompt_set, num_prompts, self.plan.sampling_of(prompt_set), candidate.tokenizer
        )
        self.samples[candidate.role, prompt_set.name] = recall_samples(
            engine, candidate, requests, prompt_set, self.work
        )

    def result(self) -> CheckResult:
        """Return the report, the cells and the scored answers of the check."""
        plan = self.plan
        samples = tuple(
            sample
            for candidate in plan.candidates
            for prompt_set in plan.prompt_sets
            for sample in self.samples.get((candidate.role, prompt_set.name), ())
        )
        checked = tuple(self.checked(prompt_set) for prompt_set in plan.prompt_sets)
        verdict = overall_verdict(self.verdicts.values())
        advice = None
        if verdict is CheckVerdict.REGRESSION:
            advice = restore_command(plan.pre.folder, plan.post.folder)
        return CheckResult(
            report=CheckReport(
                verdict=verdict,
                rule=plan.rule,
                checkpoints={
                    candidate.role: str(candidate.folder) for candidate in plan.candidates
                },
                cells=checked,
                heat_maps=tuple(heat_map(samples, candidate.role) for candidate in plan.candidates),
                generations=len(samples),
                generations_planned=len(plan.candidates)
                * len(plan.prompt_sets)
                * plan.rule.samples,
                warnings=_warnings(plan, checked),
                advice=advice,
            ),
            cells=tuple(
                recall_cell(
                    row.recall.get(candidate.role),
                    self.scores(candidate, prompt_set),
                    candidate,
                    prompt_set,
                    {
                        **self.settings[candidate.role],
                        **sampling_settings(plan.sampling_of(prompt_set)),
                        "chat_template": "none",
                        "scorer": find_task(prompt_set.task).scorer,
                    },
                )
                for candidate in plan.candidates
                for prompt_set, row in zip(plan.prompt_sets, checked, strict=True)
            ),
            samples=samples,
        )

    def scores(self, candidate: Candidate, prompt_set: PromptSet) -> list[float]:
        """Return the scores of the answers of one checkpoint to the prompts of one set so far."""
        samples = self.samples.get((candidate.role, prompt_set.name), ())
        return [sample.score for sample in samples]

    def checked(self, prompt_set: PromptSet) -> CheckedPromptSet:
        """Return the verdict, recall and paired comparisons of one prompt set."""
        by_role = {
            candidate.role: self.samples[candidate.role, prompt_set.name]
            for candidate in self.plan.candidates
            if (candidate.role, prompt_set.name) in self.samples
        }
        pairs = [("pre", "post"), ("restored", "post"), ("pre", "restored")]
        return CheckedPromptSet(
            task=prompt_set.task,
            context_tokens=prompt_set.context_tokens,
            n=max(map(len, by_role.values()), default=0),
            verdict=self.verdicts[prompt_set.name],
            recall={
                role: recall_of(
                    [sample.outcome for sample in samples], [sample.score for sample in samples]
                )
                for role, samples in by_role.items()
            },
            comparisons=tuple(
                paired_comparison(first, second, paired_scores(by_role[first], by_role[second]))
                for first, second in pairs
                if first in by_role and second in by_role
            ),
        )


def paired_scores(first: Samples, second: Samples) -> PairedScores:
    """Pair the scores of two checkpoints on the same prompts."""
    return PairedScores.of([sample.score for sample in first], [sample.score for sample in second])


def paired_comparison(first: str, second: str, scores: PairedScores) -> Comparison:
    """Return the recall difference of two checkpoints, with its interval and p-value."""
    return Comparison(
        first=first,
        second=second,
        n=scores.n,
        only_first=scores.only_first,
        only_second=scores.only_second,
        difference=scores.difference,
        interval=paired_difference(scores.counts()),
        p_value=scores.p_value(),
    )


def overall_verdict(verdicts: Collection[CheckVerdict]) -> CheckVerdict:
    """Return a regression if any set regressed, no regression if all are clear, else undecided."""
    if CheckVerdict.REGRESSION in verdicts:
        return CheckVerdict.REGRESSION
    if set(verdicts) == {CheckVerdict.NO_REGRESSION}:
        return CheckVerdict.NO_REGRESSION
    return CheckVerdict.UNDECIDED


def restore_command(pre: Path, post: Path) -> str:
    """Return the `amnesia restore` command that repairs the fine-tune `post`."""
    folder = post if post.name not in ("", "..") else post.resolve()
    out = folder.with_name(f"{folder.name}-restored")
    return shlex.join(
        ["amnesia", "restore", "--pre", str(pre), "--post", str(post), "--out", str(out)]
    )


def _warnings(plan: CheckPlan, checked: Sequence[CheckedPromptSet]) -> tuple[str, ...]:
    warnings = []
    if plan.pre.parent.identity == plan.post.parent.identity:
        warnings.append("pre and post hold the same weights")
    for row in checked:
        for role, recall in row.recall.items():
            if recall.empty:
                warnings.append(
                    f"{role}: {recall.empty} of {recall.n} answers to "
                    f"{row.task}@{row.context_tokens} are empty; they count as wrong"
                )
        pre = row.recall.get("pre")
        if pre is not None and pre.mean < plan.rule.excluded_drop:
            warnings.append(
                f"pre itself scores only {100 * pre.mean:.3g} % on {pre.n} prompts of "
                f"{row.task}@{row.context_tokens}: there is no recall to lose"
            )
    return tuple(warnings)
