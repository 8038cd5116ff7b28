"""Heat maps of recall as rows of a text table."""

from __future__ import annotations

from collections.abc import Sequence

from amnesia_bench.records.recall import HeatMap


def heat_rows(maps: Sequence[HeatMap]) -> list[list[str]]:
    """Return the rows of a table: depth, then per length the recall of each map and its n.

    `92 > 40 (25)`: in per cent, one number per map in the order given.

    Raises:
        ValueError: the maps are not of the same lengths and depths.
    """
    first = maps[0]
    if any(
        (other.depth_edges, other.context_tokens) != (first.depth_edges, first.context_tokens)
        for other in maps
    ):
        raise ValueError("heat maps of different lengths or depths")
    rows = []
    for row, (low, high) in enumerate(zip(first.depth_edges, first.depth_edges[1:], strict=False)):
        cells = []
        for column in range(len(first.context_tokens)):
            recalls = [_percent(each.correct[row][column], each.n[row][column]) for each in maps]
            counts = {each.n[row][column] for each in maps}
            cells.append(f"{' > '.join(recalls)} ({'/'.join(map(str, sorted(counts)))})")
        rows.append([f"{low:.0f}-{high:.0f} %", *cells])
    return rows


def _percent(correct: int, n: int) -> str:
    return f"{100 * correct / n:.0f}" if n else "-"
