"""IFEval: 541 prompts with instructions a program can check (Zhou et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from amnesia_bench.errors import UserError
from amnesia_bench.evals.ifeval_checkers import follows_all
from amnesia_bench.evals.judging import Attempt, Judged, Row
from amnesia_bench.evals.tasks.task import ReasoningTask, Reducer, Source
from amnesia_bench.records.evaluation import Outcome, Verdict


def _message(row: Row) -> str:
    return str(row["prompt"])


def _strict(rows: Sequence[Row], attempts: Sequence[Attempt]) -> Judged:
    return Judged(verdicts=tuple(_verdict(rows[a.key.doc], a) for a in attempts), votes=None)


def _verdict(row: Row, attempt: Attempt) -> Verdict:
    if not (attempt.text or "").strip():
        return Verdict(key=attempt.key, outcome=Outcome.NO_ANSWER, answer=None, detail=None)
    assert attempt.text is not None
    followed = follows_all(row, attempt.text)
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
    source=Source(
        hub_id="google/IFEval",
        config=None,
        split="train",
        revision="966cd89545d6b6acfd7638bc708b98261ca58e84",
        fields={"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list},
        rows=541,
    ),
    message=_message,
    scorers={"strict": _strict},
    reducers=(Reducer.AVERAGE,),
    metric="prompt_level_strict_accuracy",
)
