"""Any answer, through every scorer that runs no programs: it is judged, and ends nothing."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia_bench.reasoning.math.pool import ComparisonPool
from amnesia_bench.reasoning.math.scorer import MathScorer
from amnesia_bench.reasoning.task import Attempt
from amnesia_bench.reasoning.tasks import TASKS
from amnesia_bench.records.evaluation import Outcome, SampleKey
from tests.support.answers import LATEX

pytest.importorskip("math_verify")
pytest.importorskip("lm_eval")

ROWS: dict[str, dict[str, Any]] = {
    "math500": {"problem": "?", "answer": "1,-2"},
    "gsm8k": {"question": "?", "answer": "#### 7"},
    "aime24": {"problem": "?", "answer": "007"},
    "ifeval": {
        "key": 1,
        "prompt": "?",
        "instruction_id_list": [
            "detectable_format:json_format",
            "detectable_content:postscript",
            "detectable_content:number_placeholders",
            "detectable_format:title",
            "language:response_language",
            "change_case:english_capital",
            "keywords:letter_frequency",
            "length_constraints:number_sentences",
        ],
        "kwargs": [
            {},
            {"postscript_marker": "P.S."},
            {"num_placeholders": 2},
            {},
            {"language": "de"},
            {},
            {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
            {"num_sentences": 3, "relation": "at least"},
        ],
    },
}
RIGHT = {"math500": "\\boxed{-2, 1}", "gsm8k": "\\boxed{7}", "aime24": "\\boxed{7}"}
SECONDS = 0.5


def attempts_at(texts: Sequence[str | None]) -> list[Attempt]:
    return [
        Attempt(key=SampleKey(task="t", doc=0, repeat=i), text=text) for i, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def pool() -> Any:
    with pytest.MonkeyPatch.context() as patch, ComparisonPool() as pool:
        patch.setattr("amnesia_bench.reasoning.math.pool.ANSWER_SECONDS", SECONDS)
        yield pool


@pytest.mark.parametrize("scorer", ["strict", "flexible"])
@pytest.mark.parametrize("task", sorted(RIGHT))
@given(texts=st.lists(LATEX | LATEX.map(lambda text: f"\\boxed{{{text}}}"), max_size=5))
@settings(max_examples=25, deadline=None)
def test_mathematics(task: str, scorer: str, texts: list[str], pool: ComparisonPool) -> None:
    known = TASKS[task].scorers[scorer]
    assert isinstance(known, MathScorer)
    judged = known.judge([ROWS[task]], attempts_at([*texts, RIGHT[task], None]), pool)
    assert len(judged.verdicts) == len(texts) + 2
    assert judged.verdicts[-2].outcome is Outcome.CORRECT
    assert judged.verdicts[-1].outcome is Outcome.NO_ANSWER
    assert judged.votes is not None
    voted = [vote is not None for vote in judged.votes]
    assert voted == [v.outcome is not Outcome.NO_ANSWER for v in judged.verdicts]


@given(texts=st.lists(LATEX.map(lambda text: text[:10_000]), max_size=5))
@settings(max_examples=40, deadline=None)
def test_instructions(texts: list[str]) -> None:
    verdicts = TASKS["ifeval"].scorers["strict"]([ROWS["ifeval"]], attempts_at(texts)).verdicts
    for text, verdict in zip(texts, verdicts, strict=True):
        assert (verdict.outcome is Outcome.NO_ANSWER) == (not text.strip())
