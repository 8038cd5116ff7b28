"""Our judgement of an answer against lm-eval's own functions."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from amnesia_bench.recall.niah.tasks import score_answer
from amnesia_bench.records.evaluation import FinishReason, Generation, Outcome, SampleKey

ANSWERS = [
    "1234567",
    " The number is 1234567.",
    "12345678",
    "123 4567",
    "1234\x00567",
    "\x001234567\x1f",
    "",
    " \n\t",
    "\x00\x01",
    "ABC-1234567-def",
    "no",
    "İ1234567",
    "1234\u200b567",
]
UUID = "3f0c3c5e-94c1-4f2b-a7d8-2f2f6a0f9f11"


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    """Return lm-eval's module of the RULER tasks by itself: importing all of lm-eval is slow."""
    package = importlib.util.find_spec("lm_eval")
    if package is None or package.origin is None:
        pytest.skip("lm-eval is not installed")
    path = Path(package.origin).parent / "tasks" / "ruler" / "common_utils.py"
    spec = importlib.util.spec_from_file_location("ruler_common_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generation(text: str) -> Generation:
    return Generation(
        key=SampleKey(task="niah_single_2@4096", doc=0, repeat=0),
        text=text,
        tokens=(1,),
        prompt_tokens=9,
        finish_reason=FinishReason.EOS,
        seed=None,
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [(text, "1234567") for text in ANSWERS] + [(UUID.upper(), UUID), (UUID[:-1], UUID)],
)
def test_an_answer_scores_as_in_lm_eval(theirs: ModuleType, text: str, value: str) -> None:
    expected = theirs.string_match_all(theirs.postprocess_pred([text]), [[value]])
    assert (score_answer(generation(text), [value]).outcome is Outcome.CORRECT) == (expected == 1.0)


@pytest.mark.parametrize("text", ["", "  \n", "\x00\x1f"])
def test_an_answer_of_nothing_is_told_from_a_wrong_one(text: str) -> None:
    verdict = score_answer(generation(text), ["1234567"])
    assert (verdict.outcome, verdict.answer) == (Outcome.NO_ANSWER, None)
    assert score_answer(generation("7654321"), ["1234567"]).outcome is Outcome.WRONG
