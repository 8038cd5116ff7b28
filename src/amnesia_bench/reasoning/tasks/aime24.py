"""AIME24: the 30 problems of the AIME I and II of 2024; answers are integers from 0 to 999."""

from __future__ import annotations

from amnesia_bench.reasoning.judging import Row
from amnesia_bench.reasoning.math.scorer import MathScorer
from amnesia_bench.reasoning.tasks.prompts import step_by_step
from amnesia_bench.reasoning.tasks.task import BenchmarkSource, ReasoningTask


def _message(row: Row) -> str:
    return step_by_step(str(row["problem"]))


def _gold(row: Row) -> str:
    return str(row["answer"])


AIME24 = ReasoningTask(
    name="aime24",
    source=BenchmarkSource(
        hub_id="HuggingFaceH4/aime_2024",
        config=None,
        split="train",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        fields={"problem": str, "answer": str},
        rows=30,
    ),
    message=_message,
    scorers={
        "strict": MathScorer(gold=_gold),
        "flexible": MathScorer(gold=_gold, unboxed="number"),
    },
)
