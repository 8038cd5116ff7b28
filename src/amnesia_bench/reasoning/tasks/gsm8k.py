"""GSM8K: 1,319 grade-school word problems whose answers are numbers (Cobbe et al. 2021)."""

from __future__ import annotations

from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.judging import Row
from amnesia_bench.reasoning.math.scorer import MathScorer
from amnesia_bench.reasoning.tasks.prompts import step_by_step
from amnesia_bench.reasoning.tasks.task import BenchmarkSource, ReasoningTask

_MARK = "####"


def _message(row: Row) -> str:
    return step_by_step(str(row["question"]))


def gold(row: Row) -> str:
    """Return the number behind `####`, without its thousands separators.

    Raises:
        UserError: there is none.
    """
    _, mark, answer = str(row["answer"]).rpartition(_MARK)
    number = answer.strip().replace(",", "")
    if not mark or not number:
        raise UserError(f"gsm8k: no {_MARK} and number in the answer {str(row['answer'])[-60:]!r}")
    return number


GSM8K = ReasoningTask(
    name="gsm8k",
    source=BenchmarkSource(
        hub_id="openai/gsm8k",
        config="main",
        split="test",
        revision="740312add88f781978c0658806c59bc2815b9866",
        fields={"question": str, "answer": str},
        rows=1319,
    ),
    message=_message,
    scorers={
        "strict": MathScorer(gold=gold),
        "flexible": MathScorer(gold=gold, unboxed="number"),
    },
)
