"""Recall by depth and context length, from the records of single samples."""

from __future__ import annotations

from collections.abc import Sequence

from amnesia_bench.records.recall import HeatMap, RecallSample

ROWS = 5


def heat_map(samples: Sequence[RecallSample], role: str) -> HeatMap:
    """Count the samples of one checkpoint by depth (fifths of the context) and length.

    Raises:
        ValueError: a depth lies outside 0 to 100 per cent.
    """
    mine = [sample for sample in samples if sample.role == role]
    lengths = tuple(sorted({sample.context_tokens for sample in mine}))
    correct = [[0] * len(lengths) for _ in range(ROWS)]
    n = [[0] * len(lengths) for _ in range(ROWS)]
    for sample in mine:
        if not 0 <= sample.depth_percent <= 100:
            raise ValueError(f"{sample.key}: depth of {sample.depth_percent} %")
        # The last row includes its upper edge.
        row = min(int(sample.depth_percent * ROWS / 100), ROWS - 1)
        column = lengths.index(sample.context_tokens)
        n[row][column] += 1
        correct[row][column] += sample.correct
    return HeatMap(
        role=role,
        depth_edges=tuple(100 * i / ROWS for i in range(ROWS + 1)),
        context_tokens=lengths,
        correct=tuple(map(tuple, correct)),
        n=tuple(map(tuple, n)),
    )


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
