"""Draw the candidates of `amnesia tune`: recall against reasoning, with the Pareto front."""

from __future__ import annotations

from amnesia_bench.records.report import (
    CellStatus,
    Column,
    ReportedCell,
    TradeOffCurve,
    TradeOffPoint,
)
from amnesia_bench.records.tuning import Fate, TunedCandidate, Tuning, TuningScore
from amnesia_bench.reporting.trade_off_figure import trade_off_figure

_POST, _QK_RESTORE, _CHOSEN = "post", "restored", "qk_pro"  # rows whose marks the points have


def tuning_figure(tuning: Tuning, benchmark: str) -> str:
    """Draw all finished candidates, with labels and intervals at the known ones and the choice.

    Args:
        tuning: the result of `amnesia tune`.
        benchmark: the name of the benchmark that measured reasoning.

    Returns:
        The picture as SVG text.
    """
    finished = [each for each in tuning.candidates if each.fate is Fate.FINISHED]
    front = sorted((c for c in finished if c.front), key=lambda c: c.reasoning.value)
    rows = {each.label: _row(each, tuning) for each in finished}
    curve = TradeOffCurve(
        model="tuned checkpoint",
        recall=_column("recall", "needle prompts"),
        score=_column(benchmark, "accuracy"),
        points=tuple(
            TradeOffPoint(
                row=rows[each.label],
                label=_label(each, tuning),
                recall=_cell(each, each.recall, tuning),
                score=_cell(each, each.reasoning, tuning),
            )
            for each in finished
        ),
        lines=(tuple(rows[each.label] for each in front),),
    )
    return trade_off_figure(curve)


def _row(candidate: TunedCandidate, tuning: Tuning) -> str:
    known = {tuning.chosen: _CHOSEN, "post": _POST, "QK-Restore": _QK_RESTORE}
    return known.get(candidate.label, candidate.label)


def _label(candidate: TunedCandidate, tuning: Tuning) -> str:
    if candidate.label == tuning.chosen:
        return f"chosen ({candidate.label})"
    return candidate.label if candidate.label in ("post", "QK-Restore") else ""


def _column(group: str, label: str) -> Column:
    return Column(
        key=group, group=group, label=label, task=group, metric="accuracy", scorer=None,
        context_tokens=None,
    )  # fmt: skip


def _cell(candidate: TunedCandidate, score: TuningScore, tuning: Tuning) -> ReportedCell:
    labelled = bool(_label(candidate, tuning))
    return ReportedCell(
        model="tuned checkpoint",
        method=candidate.label,
        column="",
        status=CellStatus.DONE,
        reason=None,
        value=score.value,
        # Intervals at every point would hide the points.
        interval=score.interval if labelled else None,
        n=score.n,
        prompts=score.n,
        repeats=1,
        by_seed={},
        theirs=None,
        difference=None,
        against_post=None,
        origins=(),
    )
