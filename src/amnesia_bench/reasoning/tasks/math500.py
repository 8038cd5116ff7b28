"""MATH500: 500 problems of the MATH test set (Lightman et al. 2023, Let's Verify Step by Step)."""

from __future__ import annotations

from amnesia_bench.reasoning.judging import Row
from amnesia_bench.reasoning.math.scorer import MathScorer
from amnesia_bench.reasoning.tasks.prompts import step_by_step
from amnesia_bench.reasoning.tasks.task import BenchmarkSource, ReasoningTask


def _message(row: Row) -> str:
    return step_by_step(str(row["problem"]))


def _gold(row: Row) -> str:
    return str(row["answer"])


MATH500 = ReasoningTask(
    name="math500",
    source=BenchmarkSource(
        hub_id="HuggingFaceH4/MATH-500",
        config=None,
        split="test",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        fields={"problem": str, "answer": str},
        rows=500,
    ),
    message=_message,
    scorers={
        "strict": MathScorer(gold=_gold),
        "flexible": MathScorer(gold=_gold, unboxed="any"),
    },
)
