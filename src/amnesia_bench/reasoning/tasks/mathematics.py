"""Benchmarks whose answers are numbers or formulas: MATH500, GSM8K and AIME24."""

from __future__ import annotations

from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.math.scorer import MathScorer
from amnesia_bench.reasoning.task import BenchmarkSource, ReasoningTask, Row
from amnesia_bench.tokenizers.chat_format import step_by_step

_MARK = "####"  # precedes the number in a gold answer of GSM8K


def _problem_message(row: Row) -> str:
    return step_by_step(str(row["problem"]))


def _question_message(row: Row) -> str:
    return step_by_step(str(row["question"]))


def _answer(row: Row) -> str:
    return str(row["answer"])


def gsm8k_gold(row: Row) -> str:
    """Return the gold answer of a problem: the number after `####`, without thousands separators.

    Raises:
        UserError: the answer has no such number.
    """
    _, mark, answer = str(row["answer"]).rpartition(_MARK)
    number = answer.strip().replace(",", "")
    if not mark or not number:
        raise UserError(f"gsm8k: no {_MARK} and number in the answer {str(row['answer'])[-60:]!r}")
    return number


# 500 problems of the MATH test set (Lightman et al. 2023, Let's Verify Step by Step).
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
    message=_problem_message,
    scorers={
        "strict": MathScorer(gold=_answer),
        "flexible": MathScorer(gold=_answer, unboxed="any"),
    },
)

# 1,319 grade-school word problems whose answers are numbers (Cobbe et al. 2021).
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
    message=_question_message,
    scorers={
        "strict": MathScorer(gold=gsm8k_gold),
        "flexible": MathScorer(gold=gsm8k_gold, unboxed="number"),
    },
)

# The 30 problems of the AIME I and II of 2024; answers are integers from 0 to 999.
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
    message=_problem_message,
    scorers={
        "strict": MathScorer(gold=_answer),
        "flexible": MathScorer(gold=_answer, unboxed="number"),
    },
)
