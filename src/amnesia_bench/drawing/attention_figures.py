"""Draw the figures of `amnesia analyze`: decay with distance, and attention distances of heads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amnesia_bench.drawing import svg
from amnesia_bench.drawing.labels import CHARACTER
from amnesia_bench.records.attention import (
    Autocorrelation,
    DecayFit,
    DistanceCurve,
    DistanceShift,
    GradientsByDistance,
    HeadDistances,
)

_WIDTH, _HEIGHT = 520.0, 260.0
_LEFT, _TOP, _BOTTOM = 64.0, 20.0, 44.0
_LINE = 18.0
_MARKERS = 24  # maximum number of markers per curve; markers at every distance would overlap
_MARKS = (
    svg.MARKS["restored"],
    svg.MARKS["post"],
    svg.MARKS["qk_pro"],
    svg.MARKS["k"],
    svg.MARKS["q"],
    svg.MARKS["pre"],
)


@dataclass(frozen=True, kw_only=True)
class _Line:
    label: str
    curve: DistanceCurve
    fit: DecayFit | None


def gradient_figure(measurements: Sequence[GradientsByDistance]) -> str:
    """Draw mean |dL/ds| against distance with fits, one line per data source (Figure 3, right)."""
    lines = [
        _Line(label=f"{m.source}: n = {m.n}, {_scale(m.fit)}", curve=m.curve, fit=m.fit)
        for m in measurements
    ]
    lengths = sorted({m.tokens for m in measurements})
    caption = f"mean |dL/ds| over texts of {', '.join(map(str, lengths))} tokens"
    return _decay_figure(lines, caption)


def autocorrelation_figure(measurements: Sequence[Autocorrelation]) -> str:
    """Draw the autocorrelation by one definition, one line per data source (Figure 3, left)."""
    lines = [
        _Line(
            label=f"{m.source}: n = {m.n}, "
            + ("no decay above chance" if m.fit is None else _scale(m.fit)),
            curve=m.curve,
            fit=m.fit,
        )
        for m in measurements
    ]
    definition = measurements[0].reading.replace("_", " ")
    return _decay_figure(lines, f"token autocorrelation, {definition}")


def _scale(fit: DecayFit) -> str:
    ends = fit.scale_ends
    interval = "" if ends is None else f" [{_tokens(ends[0])}, {_tokens(ends[1])}]"
    return f"1/e in {_tokens(fit.scale_tokens)}{interval} tokens"


def _tokens(value: float) -> str:
    return "\u221e" if math.isinf(value) else f"{value:.3g}"


def _decay_figure(lines: Sequence[_Line], caption: str) -> str:
    """Draw curves with 95 % intervals on a logarithmic axis, on which exponentials are straight."""
    values = [v for line in lines for v in line.curve.mean[max(0, 1 - line.curve.first) :] if v > 0]
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    lowest = math.floor(math.log10(max(low, high * 1e-6)))
    box = svg.Box(
        left=_LEFT,
        top=_TOP,
        width=_WIDTH - _LEFT - 16,
        height=_HEIGHT,
        x_range=(0, max(line.curve.first + len(line.curve.mean) - 1 for line in lines)),
        y_range=(lowest, max(math.ceil(math.log10(high)), lowest + 1)),
    )
    parts = [*_axes(box, "distance in tokens")]
    bottom = _TOP + _HEIGHT + _BOTTOM
    for i, line in enumerate(lines):
        mark = _MARKS[i % len(_MARKS)]
        parts += _decay_line(box, line, mark)
        y = bottom + _LINE * i
        parts.append(svg.curve([(_LEFT, y), (_LEFT + 24, y)], mark))
        parts.append(svg.text(_LEFT + 34, y + 4, line.label, anchor="start"))
    y = bottom + _LINE * len(lines) + 4
    note = f"{caption}; bars: 95 % intervals over texts; thin lines: fits"
    parts.append(svg.text(_LEFT, y, note, anchor="start"))
    widest = max(len(note), *(len(line.label) + 6 for line in lines))
    return svg.picture(max(_WIDTH, _LEFT + CHARACTER * widest), y + 12, caption, parts)


def _decay_line(box: svg.Box, line: _Line, mark: svg.Mark) -> Iterator[str]:
    curve = line.curve
    floor = 10 ** box.y_range[0]

    def height(value: float) -> float:
        return box.y(min(math.log10(max(value, floor)), box.y_range[1]))

    # The line is broken at values that the logarithmic axis cannot show.
    pieces: list[list[tuple[float, float]]] = [[]]
    for distance in _spaced(max(1, curve.first), curve.first + len(curve.mean) - 1):
        i = distance - curve.first
        if curve.mean[i] <= floor:
            pieces.append([])
            continue
        x = box.x(distance)
        pieces[-1].append((x, height(curve.mean[i])))
        if curve.low:
            yield svg.error_bar(x, height(curve.low[i]), height(curve.high[i]), mark)
    yield from (svg.curve(points, mark) for points in pieces if points)
    if (fit := line.fit) is not None and (ends := _visible_ends(fit, box)) is not None:
        start, stop = ((box.x(d), height(fit.at(d))) for d in ends)
        yield svg.line(*start, *stop, colour=mark.colour)


def _visible_ends(fit: DecayFit, box: svg.Box) -> tuple[float, float] | None:
    """Return the distances between which a fit is on the logarithmic axis; None if nowhere.

    A line to an end that is cut off at the edge of the axis would have another slope than the fit.
    """
    rate, ends = fit.rate.value, (float(fit.first), float(fit.last))
    if rate == 0:
        return ends
    # The distances at which the fit crosses the upper and the lower edge.
    edges = (math.log(fit.amplitude / 10**power) / rate for power in reversed(box.y_range))
    low, high = sorted(edges)
    visible = max(ends[0], low), min(ends[1], high)
    return visible if visible[0] < visible[1] else None


def _spaced(first: int, last: int) -> list[int]:
    """Return at most `_MARKERS` evenly spaced distances, including both ends."""
    steps = min(_MARKERS - 1, last - first) or 1
    return sorted({round(first + (last - first) * i / steps) for i in range(steps + 1)})


def _axes(box: svg.Box, label: str) -> Iterator[str]:
    low, high = (round(end) for end in box.y_range)
    for power in range(low, high + 1):
        y = box.y(power)
        yield svg.line(box.left, y, box.left + box.width, y, opacity=svg.FAINT)
        yield svg.text(box.left - 6, y + 4, f"{10.0**power:g}", anchor="end")
    bottom = box.top + box.height
    for quarter in range(5):
        value = box.x_range[1] * quarter / 4
        yield svg.text(box.x(value), bottom + 16, f"{value:.0f}")
    yield svg.text(box.left + box.width / 2, bottom + 30, label)


def distance_figure(checkpoints: Sequence[HeadDistances], shifts: Sequence[DistanceShift]) -> str:
    """Draw the mean attention distance of each layer, one line per checkpoint.

    Above each layer, one label per shift shows how many heads have a shorter distance in its second
    checkpoint than in its first.
    """
    layers = sorted({head.layer for head in checkpoints[0].heads})
    means = {
        checkpoint.role: [
            _mean([head.distance for head in checkpoint.heads if head.layer == layer])
            for layer in layers
        ]
        for checkpoint in checkpoints
    }
    box = svg.Box(
        left=_LEFT,
        top=_TOP + 2 * _LINE * len(shifts),
        width=max(_WIDTH - _LEFT - 16, 34.0 * len(layers)),
        height=_HEIGHT,
        x_range=(-0.5, len(layers) - 0.5),
        y_range=(0, _round_up(max(max(values) for values in means.values()))),
    )
    parts = [*_distance_axes(box, layers)]
    for row, shift in enumerate(shifts):
        y = _TOP + row * 2 * _LINE
        heading = f"heads with a shorter distance in {shift.second} than in {shift.first}:"
        parts.append(svg.text(box.left, y, heading, anchor="start"))
        by_layer = {row.layer: row for row in shift.layers}
        for i, layer in enumerate(layers):
            count = f"{by_layer[layer].shortened}/{by_layer[layer].heads}"
            parts.append(svg.text(box.x(i), y + _LINE, count))
    bottom = box.top + box.height + _BOTTOM
    for i, (role, values) in enumerate(means.items()):
        mark = svg.MARKS.get(role, svg.OTHER_MARK)
        parts.append(svg.curve([(box.x(k), box.y(v)) for k, v in enumerate(values)], mark))
        x = box.left + 130 * i
        parts.append(svg.curve([(x, bottom), (x + 24, bottom)], mark))
        parts.append(svg.text(x + 32, bottom + 4, role, anchor="start"))
    first = checkpoints[0]
    tokens = "-".join(str(n) for n in sorted(set(first.tokens)))
    caption = (
        f"mean attention distance in tokens (Eq. 17) by layer, n = {first.n} texts of {tokens} "
        "tokens"
    )
    parts.append(svg.text(box.left, bottom + 24, caption, anchor="start"))
    width = max(box.left + box.width + 16, box.left + CHARACTER * len(caption))
    return svg.picture(width, bottom + 36, caption, parts)


def _distance_axes(box: svg.Box, layers: Sequence[int]) -> Iterator[str]:
    for quarter in range(5):
        value = box.y_range[1] * quarter / 4
        y = box.y(value)
        yield svg.line(box.left, y, box.left + box.width, y, opacity=svg.FAINT)
        yield svg.text(box.left - 6, y + 4, f"{value:.4g}", anchor="end")
    for i, layer in enumerate(layers):
        yield svg.text(box.x(i), box.top + box.height + 16, str(layer))
    yield svg.text(box.left + box.width / 2, box.top + box.height + 30, "layer")


def _round_up(value: float) -> float:
    """Return the smallest number not below `value` whose quarters have few digits."""
    power = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(power * step for step in (1.0, 2.0, 4.0, 6.0, 8.0, 10.0) if value <= power * step)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
