"""Our mathematical tasks for lm-eval's `--include_path`, with our prompts and our scorer.

lm-eval does not tell a task whether the chat template opens the reasoning block. If the template
does so, a reply that was truncated inside the block is scored as an answer; `amnesia generate`
handles this case correctly.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from amnesia_bench.config.eval_schema import Think
from amnesia_bench.reasoning.math.pool import ComparisonPool
from amnesia_bench.reasoning.math.scorer import MathScorer
from amnesia_bench.reasoning.problem_statistics import average, majority
from amnesia_bench.reasoning.task import Attempt, Row
from amnesia_bench.reasoning.tasks import task_named
from amnesia_bench.records.evaluation import Outcome, SampleKey
from amnesia_bench.tokenizers.chat_format import without_thinking

# The folder to pass as `--include_path`.
INCLUDE_PATH = Path(__file__).parent / "tasks"
_THINK = Think(open="<think>", close="</think>")

Results = Callable[[Row, Sequence[Sequence[str]]], Mapping[str, float]]


def functions_of(task: str) -> tuple[Callable[[Row], str], Results]:
    """Return the functions `doc_to_text` and `process_results` of a task."""
    reasoning_task = task_named(task)
    scorer = reasoning_task.scorers["strict"]
    assert isinstance(scorer, MathScorer)

    def results(doc: Row, answers: Sequence[Sequence[str]]) -> Mapping[str, float]:
        """Score all answers to one problem, which lm-eval passes as one list."""
        attempts = [
            Attempt(
                key=SampleKey(task=task, doc=0, repeat=repeat),
                text=without_thinking(text, _THINK, opened=False),
            )
            for repeat, text in enumerate(answers[0])
        ]
        scored = scorer.judge([doc], attempts, _pool())
        correct = [verdict.outcome is Outcome.CORRECT for verdict in scored.verdicts]
        assert scored.votes is not None
        return {"avg": average(correct), "maj": majority(correct, scored.votes)}

    return reasoning_task.message, results


@cache
def _pool() -> Any:
    """Return a process pool that all calls share: lm-eval scores one problem per call."""
    pool = ComparisonPool()
    atexit.register(pool.__exit__, None, None, None)
    return pool
