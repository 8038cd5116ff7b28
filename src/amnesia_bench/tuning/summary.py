"""Format the result of `amnesia tune` as Markdown and as table rows."""

from __future__ import annotations

from collections.abc import Sequence

from amnesia_bench.markdown import escape, markdown_table
from amnesia_bench.records.evaluation import Interval
from amnesia_bench.records.recall import Comparison
from amnesia_bench.records.tuning import ConfirmedCandidate, TunedCandidate, Tuning, TuningScore

COLUMNS = ("candidate", "share of pre", "recall", "n", "reasoning", "n", "front", "state")
CONFIRMED_COLUMNS = (
    "candidate",
    "measure",
    "search",
    "fresh",
    "n",
    "bias",
    "against post",
    "against QK-Restore",
)


def candidate_rows(tuning: Tuning) -> list[list[str]]:
    """Return one row per candidate: the front first, then all others, by recall."""
    ordered = sorted(
        tuning.candidates, key=lambda c: (not c.front, c.fate.value != "finished", -c.recall.value)
    )
    return [_candidate_row(each, tuning) for each in ordered]


def _candidate_row(candidate: TunedCandidate, tuning: Tuning) -> list[str]:
    chosen = " (chosen)" if candidate.label == tuning.chosen else ""
    return [
        f"{candidate.label}{chosen}",
        candidate.description,
        _score(candidate.recall),
        str(candidate.recall.n),
        _score(candidate.reasoning),
        str(candidate.reasoning.n),
        "yes" if candidate.front else "",
        candidate.fate.value,
    ]


def confirmed_rows(tuning: Tuning) -> list[list[str]]:
    """Return two rows per confirmed candidate: recall and reasoning, with the bias of choosing."""
    rows = []
    for confirmed in tuning.confirmed:
        searched = tuning.candidate(confirmed.label)
        rows.append(
            _confirmed_row(
                confirmed, "recall", (searched.recall, confirmed.recall),
                confirmed.recall_differences,
            )
        )  # fmt: skip
        rows.append(
            _confirmed_row(
                confirmed, "reasoning", (searched.reasoning, confirmed.reasoning),
                confirmed.reasoning_differences,
            )
        )  # fmt: skip
    return rows


def _confirmed_row(
    confirmed: ConfirmedCandidate,
    measure: str,
    scores: tuple[TuningScore, TuningScore],
    differences: Sequence[Comparison],
) -> list[str]:
    search, fresh = scores
    against = {comparison.second: _difference(comparison) for comparison in differences}
    return [
        confirmed.label,
        measure,
        _score(search),
        _score(fresh),
        str(fresh.n),
        f"{100 * (search.value - fresh.value):+.1f}",
        against.get("post", "-"),
        against.get("QK-Restore", "-"),
    ]


def tuning_headline(tuning: Tuning) -> str:
    """Return one sentence: the choice, and what the fresh questions say about it."""
    chosen = tuning.candidate(tuning.chosen)
    confirmed = next(each for each in tuning.confirmed if each.label == tuning.chosen)
    if chosen.label == "post":
        return "No candidate has more recall than post within the rule: the checkpoint is post's."
    against_post = confirmed.recall_differences[0]
    reasoning = confirmed.reasoning_differences[0]
    return (
        f"Chosen: {chosen.label} ({chosen.description}). On fresh questions, recall is "
        f"{_difference(against_post)} points from post, and reasoning {_difference(reasoning)}."
    )


def tuning_markdown(tuning: Tuning) -> str:
    """Return the tables of the search and of the confirmation, with their notes."""
    work = tuning.work
    lines = [
        "## Recall against reasoning",
        "",
        escape(tuning_headline(tuning)),
        "",
        f"Rule, fixed before the search: {tuning.rule}.",
        "",
        "In per cent, with 95 % intervals (Wilson).",
        "",
        *_table(COLUMNS, candidate_rows(tuning)),
    ]
    lines += [
        "",
        f"Budget: {work.budget:g} full evaluations of {work.full} answers; {work.answers} answers "
        "were used. A dropped candidate was significantly worse than post or QK-Restore; a paused "
        "one got no further share of the budget. The hypervolume of the finished ones is "
        f"{tuning.hypervolume:.4f}.",
        "",
        "### Confirmation on fresh questions",
        "",
        f"{work.confirmation} answers to questions that the search did not use. The bias is what "
        "choosing made look better: the value of the search minus the fresh one. Differences are "
        "in points, with 95 % intervals (Tango) and p (McNemar, exact).",
        "",
        *_table(CONFIRMED_COLUMNS, confirmed_rows(tuning)),
        "",
        "### Screens",
        "",
        "They order the candidates and drop none.",
        "",
        *_table(("screen", *_layers(tuning)), _screen_rows(tuning)),
    ]
    return "\n".join(lines) + "\n"


def _layers(tuning: Tuning) -> list[str]:
    return [f"layer {layer}" for layer in tuning.screens[0].by_layer]


def _screen_rows(tuning: Tuning) -> list[list[str]]:
    return [
        [screen.name, *(f"{value:.3g}" for value in screen.by_layer.values())]
        for screen in tuning.screens
    ]


def _score(score: TuningScore) -> str:
    return f"{100 * score.value:.1f} {_ends(score.interval)}"


def _ends(interval: Interval) -> str:
    return f"({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _difference(comparison: Comparison) -> str:
    return (
        f"{100 * comparison.difference:+.1f} {_ends(comparison.interval)}, "
        f"p {comparison.p_value:.2g}"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[escape(cell) for cell in row] for row in rows]
    return markdown_table(heads, escaped, left=len(heads))
