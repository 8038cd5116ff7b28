"""The tables of tune_study.py."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from amnesia_bench.records.tuning import Tuning, TuningScore
from amnesia_bench.statistics.intervals import wilson
from amnesia_bench.statistics.over_seeds import sign_flip_over_seeds

Row = Mapping[str, object]


def hypervolume_table(rows: Mapping[int, Sequence[Row]]) -> str:
    """Return the table of all methods: means over seeds, and differences of tune from each."""
    lines = [
        "| method | evaluated | hypervolume | tune minus it | seeds with tune at least equal | p | "
        "recall of the choice | reasoning of the choice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in (row["method"] for row in next(iter(rows.values()))):
        evaluated, own, recall, reasoning = (
            _column(rows, method, key)
            for key in (
                "evaluated",
                "hypervolume_fresh",
                "chosen_recall_fresh",
                "chosen_reasoning_fresh",
            )
        )
        tune = _column(rows, "tune", "hypervolume_fresh")
        differences = [a - b for a, b in zip(tune, own, strict=True)]
        lines.append(
            f"| {method} | {statistics.mean(evaluated):.0f} | {statistics.mean(own):.4f} | "
            f"{statistics.mean(differences):+.4f} | "
            f"{sum(value >= 0 for value in differences)} of {len(own)} | "
            f"{sign_flip_over_seeds(differences):.2g} | {100 * statistics.mean(recall):.1f} % | "
            f"{100 * statistics.mean(reasoning):.1f} % |"
        )
    return "\n".join(lines) + "\n"


def _column(rows: Mapping[int, Sequence[Row]], method: object, key: str) -> list[float]:
    return [
        float(str(row[key]))
        for of_seed in rows.values()
        for row in of_seed
        if row["method"] == method
    ]


def confirmation_table(searches: Mapping[int, Tuning]) -> str:
    """Return the table of post, QK-Restore and the choice of tune, by seed and of all seeds.

    The choice was made by the questions of the search; the fresh ones show what it is worth.
    """
    lines = [
        "| seed | checkpoint | recall, search | recall, fresh | reasoning, search | "
        "reasoning, fresh |",
        "|---|---|---|---|---|---|",
    ]
    columns: dict[str, list[list[TuningScore]]] = {}
    for seed, search in searches.items():
        names = {"post": "post", "QK-Restore": "QK-Restore", "choice of tune": search.chosen}
        for name, label in names.items():
            found = search.candidate(label)
            fresh = next(each for each in search.confirmed if each.label == label)
            scores = [found.recall, fresh.recall, found.reasoning, fresh.reasoning]
            what = f"{name}: {found.description}" if name not in names.values() else name
            counts = " | ".join(f"{score.correct} of {score.n}" for score in scores)
            lines.append(f"| {seed} | {what} | {counts} |")
            for column, score in zip(
                columns.setdefault(name, [[], [], [], []]), scores, strict=True
            ):
                column.append(score)
    lines += [
        f"| all | {name} | {' | '.join(map(_pooled, of_name))} |"
        for name, of_name in columns.items()
    ]
    return "\n".join(lines) + "\n"


def _pooled(scores: Sequence[TuningScore]) -> str:
    correct, n = sum(each.correct for each in scores), sum(each.n for each in scores)
    interval = wilson(correct, n)
    return (
        f"{100 * correct / n:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f}), n={n}"
    )
