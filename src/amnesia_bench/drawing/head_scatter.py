"""Draw how attention distance and attention on the needle changed, a point per head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amnesia_bench.drawing import svg
from amnesia_bench.drawing.labels import CHARACTER

_WIDTH, _HEIGHT = 420.0, 260.0
_LEFT, _TOP, _BOTTOM = 72.0, 20.0, 64.0
_LINE = 18.0
_MARKS = (svg.MARKS["post"], svg.MARKS["restored"], svg.MARKS["qk_pro"], svg.MARKS["pre"])


@dataclass(frozen=True, kw_only=True)
class HeadChange:
    """The changes of one head: attention distance in tokens, and attention on the needle."""

    layer: int
    distance: float
    needle_mass: float


def head_scatter(heads: Sequence[HeadChange], subject: str) -> str:
    """Draw the change of attention on the needle against that of the attention distance.

    The marks differ by layer; layers beyond the fourth share the last mark.
    """
    x_range = _range([head.distance for head in heads])
    y_range = _range([head.needle_mass for head in heads])
    box = svg.Box(
        left=_LEFT, top=_TOP, width=_WIDTH, height=_HEIGHT, x_range=x_range, y_range=y_range
    )
    parts = [*_axes(box)]
    layers = sorted({head.layer for head in heads})
    for head in heads:
        mark = _MARKS[min(layers.index(head.layer), len(_MARKS) - 1)]
        parts.append(svg.marker(box.x(head.distance), box.y(head.needle_mass), mark))
    bottom = _TOP + _HEIGHT + _BOTTOM
    for i, mark in enumerate(_MARKS[: len(layers)]):
        last = i == len(_MARKS) - 1 and len(layers) > len(_MARKS)
        label = f"layers {layers[i]} to {layers[-1]}" if last else f"layer {layers[i]}"
        x = _LEFT + 110 * i
        parts.append(svg.marker(x, bottom, mark))
        parts.append(svg.text(x + 10, bottom + 4, label, anchor="start"))
    caption = (
        f"{subject}: change of attention on the needle against change of attention distance, "
        f"n = {len(heads)} heads"
    )
    parts.append(svg.text(_LEFT, bottom + _LINE + 6, caption, anchor="start"))
    width = max(_LEFT + _WIDTH + 16, _LEFT + CHARACTER * len(caption))
    return svg.picture(width, bottom + _LINE + 18, caption, parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return a range with a margin that contains the values and 0."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _axes(box: svg.Box) -> Iterator[str]:
    right, bottom = box.left + box.width, box.top + box.height
    yield svg.line(box.left, box.y(0), right, box.y(0), opacity=svg.PALE)
    yield svg.line(box.x(0), box.top, box.x(0), bottom, opacity=svg.PALE)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = (low + share * (high - low) for low, high in (box.x_range, box.y_range))
        yield svg.line(box.left, box.y(y), right, box.y(y), opacity=svg.FAINT)
        yield svg.text(box.left - 6, box.y(y) + 4, f"{y:+.2g}", anchor="end")
        yield svg.text(box.x(x), bottom + 16, f"{x:+.3g}")
    yield svg.text(box.left + box.width / 2, bottom + 34, "change of attention distance, tokens")
