"""Draw one head's attention maps in several checkpoints and the log ratio of two (Figure 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from amnesia_bench.drawing import svg
from amnesia_bench.records.attention import PooledAttention

_SIDE = 256.0
_LEFT, _TOP, _GAP, _BOTTOM = 52.0, 26.0, 22.0, 78.0
_LEVELS = 12  # number of shades; adjacent tiles of the same shade are drawn as one stroke
_LOWEST = -5.0  # log10 of the smallest attention weight on the colour scale
_RATIO = 2.0  # log10 of the largest ratio on the colour scale


def map_figure(maps: Sequence[PooledAttention]) -> str:
    """Draw one head's attention maps, a panel per checkpoint, and the log ratio of the last two.

    Rows are queries and columns are keys; thin lines mark the start of the needle. Dark tiles stand
    for small weights and bright tiles for large ones, also when printed in grey. In the last panel,
    which shows the ratio, a tile is dark if its weight is smaller in the last checkpoint than in
    the checkpoint before.
    """
    first = maps[0]
    panels = [(attention.role, _weights(attention), attention) for attention in maps]
    ratio = len(maps) > 1
    if ratio:
        before, after = maps[-2], maps[-1]
        panels.append((f"log {after.role} / {before.role}", _ratios(before, after), after))
    parts: list[str] = []
    for i, (label, shares, of_map) in enumerate(panels):
        left = _LEFT + i * (_SIDE + _GAP)
        parts.append(svg.text(left + _SIDE / 2, _TOP - 8, label))
        parts += _panel(of_map, shares, left)
    bottom = _TOP + _SIDE
    parts.append(svg.text(_LEFT - 6, _TOP + 10, "0", anchor="end"))
    parts.append(svg.text(_LEFT - 6, bottom, str(first.tokens), anchor="end"))
    parts += _scale(_LEFT, bottom + 24, ["10^-5", "attention", "1"])
    if ratio:
        left = _LEFT + (len(panels) - 1) * (_SIDE + _GAP)
        parts += _scale(left, bottom + 24, ["1/100", "ratio", "100"])
    size = len(first.rows)
    caption = (
        f"layer {first.layer}, head {first.head}; n = 1 prompt of {first.tokens} tokens, needle at "
        f"{first.needle[0]}; largest weight of each of {size} x {size} tiles"
    )
    parts.append(svg.text(_LEFT, bottom + 66, caption, anchor="start"))
    width = _LEFT + len(panels) * (_SIDE + _GAP)
    return svg.picture(max(width, 640), bottom + _BOTTOM, caption, parts)


def _weights(attention: PooledAttention) -> Callable[[int, int], float]:
    def share(row: int, column: int) -> float:
        return 1 - _log(attention.rows[row][column]) / _LOWEST

    return share


def _ratios(before: PooledAttention, after: PooledAttention) -> Callable[[int, int], float]:
    def share(row: int, column: int) -> float:
        ratio = _log(after.rows[row][column]) - _log(before.rows[row][column])
        return 0.5 + ratio / (2 * _RATIO)

    return share


def _log(weight: float) -> float:
    return max(math.log10(weight), _LOWEST) if weight > 0 else _LOWEST


def _panel(
    attention: PooledAttention, shares: Callable[[int, int], float], left: float
) -> Iterator[str]:
    step = _SIDE / len(attention.rows)
    strokes: dict[int, list[str]] = {}
    for row in range(len(attention.rows)):
        levels = [_level(shares(row, column)) for column in range(row + 1)]
        start = 0
        for column in range(1, row + 2):
            if column == row + 1 or levels[column] != levels[start]:
                x, y = left + start * step, _TOP + (row + 0.5) * step
                stroke = f"M{x:.1f} {y:.1f}h{(column - start) * step:.1f}"
                strokes.setdefault(levels[start], []).append(stroke)
                start = column
    for level, pieces in sorted(strokes.items()):
        colour = svg.shade(level / (_LEVELS - 1))
        yield (
            f'<path d="{"".join(pieces)}" stroke="{colour}" stroke-width="{step + 0.1:.2f}" '
            'fill="none"/>'
        )
    at = _SIDE * attention.needle[0] / attention.tokens
    yield svg.line(left, _TOP + at, left + _SIDE, _TOP + at, opacity=svg.PALE)
    yield svg.line(left + at, _TOP, left + at, _TOP + _SIDE, opacity=svg.PALE)


def _level(share: float) -> int:
    return round(min(max(share, 0.0), 1.0) * (_LEVELS - 1))


def _scale(left: float, top: float, words: Sequence[str]) -> Iterator[str]:
    width = 10.0
    for level in range(_LEVELS):
        yield svg.tile(left + level * width, top, width, 10, level / (_LEVELS - 1))
    for word, x in zip(words, (0.0, 0.5, 1.0), strict=True):
        yield svg.text(left + x * width * _LEVELS, top + 24, word)
