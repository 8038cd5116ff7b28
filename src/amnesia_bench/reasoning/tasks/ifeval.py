"""IFEval: 541 prompts with instructions that a program can check (Zhou et al. 2023)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.reasoning import ifeval_checkers
from amnesia_bench.reasoning.ifeval_checkers import LONG_CHARACTERS, follows_all, instructions_of
from amnesia_bench.reasoning.math.equality import obstacle_of
from amnesia_bench.reasoning.math.pool import ComparisonPool
from amnesia_bench.reasoning.task import (
    Attempt,
    BenchmarkSource,
    ReasoningTask,
    Row,
    ScoringResult,
)
from amnesia_bench.records.evaluation import Outcome, Verdict


def _message(row: Row) -> str:
    return str(row["prompt"])


def _strict(rows: Sequence[Row], attempts: Sequence[Attempt]) -> ScoringResult:
    """Judge each answer by the strict rule; long answers in worker processes with a time limit."""
    long = [a for a in attempts if len(a.text or "") > LONG_CHARACTERS and (a.text or "").strip()]
    requests = [(json.dumps(rows[a.key.doc], default=str), a.text or "") for a in long]
    for attempt in long:
        instructions_of(rows[attempt.key.doc])  # raises a clear error if the row is invalid
    with ComparisonPool(ifeval_checkers.__name__, "lm_eval") as pool:
        replies = dict(zip((a.key for a in long), pool.run(requests), strict=True))
    return ScoringResult(
        verdicts=tuple(_verdict(rows[a.key.doc], a, replies.get(a.key)) for a in attempts),
        votes=None,
    )


def _verdict(row: Row, attempt: Attempt, reply: Any) -> Verdict:
    if not (attempt.text or "").strip():
        return Verdict(key=attempt.key, outcome=Outcome.NO_ANSWER, answer=None, detail=None)
    assert attempt.text is not None
    if (obstacle := obstacle_of(reply)) is not None:
        outcome, detail = obstacle
        return Verdict(key=attempt.key, outcome=outcome, answer=attempt.text, detail=detail)
    followed = follows_all(row, attempt.text) if reply is None else reply
    broken = [name for name, done in followed if not done]
    if not followed:
        raise UserError(f"ifeval: problem {attempt.key.doc} has no instructions")
    return Verdict(
        key=attempt.key,
        outcome=Outcome.WRONG if broken else Outcome.CORRECT,
        answer=attempt.text,
        detail=f"not followed: {', '.join(broken)}" if broken else None,
    )


IFEVAL = ReasoningTask(
    name="ifeval",
    source=BenchmarkSource(
        hub_id="google/IFEval",
        config=None,
        split="train",
        revision="966cd89545d6b6acfd7638bc708b98261ca58e84",
        fields={"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list},
        rows=541,
    ),
    message=_message,
    scorers={"strict": _strict},
)
