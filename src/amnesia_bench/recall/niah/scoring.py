"""Did the answer hold the needle's value? As lm-eval's RULER tasks judge it, sample by sample."""

from __future__ import annotations

import re

from amnesia_bench.records.evaluation import Generation, Outcome, Verdict

_CONTROL = re.compile(r"[\x00-\x1f]")


def score_needle(generation: Generation, value: str) -> Verdict:
    """Judge one answer by lm-eval's `string_match_all` with one value to be found.

    White space around the answer and control characters in it do not count, nor does the case.
    The value may stand inside a longer number: 12345678 holds 1234567. An answer of nothing is
    `NO_ANSWER`, which is as wrong.
    """
    answer = _CONTROL.sub("\n", generation.text.strip()).strip()
    if value.lower() in answer.lower():
        outcome = Outcome.CORRECT
    else:
        outcome = Outcome.WRONG if answer else Outcome.NO_ANSWER
    return Verdict(key=generation.key, outcome=outcome, answer=answer or None, detail=None)
