"""Recall by depth and length."""

from dataclasses import replace

import pytest

from amnesia_bench.recall.check_summary import heat_rows
from amnesia_bench.records.evaluation import FinishReason, Outcome, SampleKey
from amnesia_bench.records.recall import RecallSample, heat_map


def sample(depth: float, length: int, *, correct: bool, role: str = "pre") -> RecallSample:
    return RecallSample(
        role=role,
        key=SampleKey(task=f"niah_single_2@{length}", doc=0, repeat=0),
        context_tokens=length,
        depth_percent=depth,
        needle=(1, 2),
        prompt_tokens=length,
        value="7",
        text="7",
        outcome=Outcome.CORRECT if correct else Outcome.WRONG,
        finish_reason=FinishReason.EOS,
    )


SAMPLES = [
    sample(0, 4096, correct=True),
    sample(19.9, 4096, correct=False),
    sample(20, 4096, correct=True),
    sample(100, 1024, correct=True),
    sample(80, 1024, correct=False),
    sample(50, 4096, correct=True, role="post"),
]


def test_each_sample_is_in_one_bin_and_the_last_holds_its_upper_edge() -> None:
    found = heat_map(SAMPLES, "pre")
    assert found.context_tokens == (1024, 4096)
    assert found.n == ((0, 2), (0, 1), (0, 0), (0, 0), (2, 0))
    assert found.correct == ((0, 1), (0, 1), (0, 0), (0, 0), (1, 0))
    assert found.depth_edges == (0, 20, 40, 60, 80, 100)


def test_rows_show_recall_of_all_checkpoints_and_n() -> None:
    post = [replace(each, role="post", outcome=Outcome.WRONG) for each in SAMPLES[:5]]
    rows = heat_rows([heat_map(SAMPLES, "pre"), heat_map(post, "post")])
    assert rows[0] == ["0-20 %", "- > - (0)", "50 > 0 (2)"]
    assert rows[4] == ["80-100 %", "50 > 0 (2)", "- > - (0)"]


def test_maps_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        heat_rows([heat_map(SAMPLES, "pre"), heat_map(SAMPLES, "post")])


@pytest.mark.parametrize("depth", [-1.0, 100.5, float("nan")])
def test_a_depth_outside_the_context_is_refused(depth: float) -> None:
    with pytest.raises(ValueError, match="depth"):
        heat_map([sample(depth, 1024, correct=True)], "pre")
