"""Figures of `amnesia analyze`: what they draw is what the records say."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from amnesia_bench.drawing import svg
from amnesia_bench.drawing.attention_figures import autocorrelation_figure, distance_figure
from amnesia_bench.drawing.attention_map_figure import map_figure
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.attention import (
    Autocorrelation,
    BootstrapValue,
    DecayFit,
    DistanceCurve,
    DistanceShift,
    HeadDistances,
    HeadReading,
    LayerShift,
    PooledAttention,
)
from amnesia_bench.records.evaluation import Interval

PARENT = Parent(role="pre", location="here", identity="sha256:0")


def _texts(drawing):
    return [each.text for each in ET.fromstring(drawing).iter() if each.tag.endswith("text")]


def _map(role, rows):
    return PooledAttention(
        role=role, checkpoint=PARENT, inputs=PARENT, layer=33, head=8, tokens=8192,
        needle=(4096, 4120), rows=rows, settings={},
    )  # fmt: skip


def _strokes(drawing):
    """Colour -> (x, y, length) of what is drawn in it."""
    found = {}
    for d, colour in re.findall(r'<path d="([^"]+)" stroke="([^"]+)"', drawing):
        pieces = re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)", d)
        found.setdefault(colour, []).extend(tuple(map(float, piece)) for piece in pieces)
    return found


def test_a_map_is_dark_for_little_and_its_ratio_bright_for_more():
    before = _map("post", ((1.0,), (1e-5, 1.0)))
    after = _map("restored", ((1.0,), (1e-3, 1.0)))
    drawing = map_figure([before, after])
    strokes = _strokes(drawing)
    panel = 256 + 22
    lower_left = {
        int((x - 52) // panel): colour
        for colour, pieces in strokes.items()
        for x, y, length in pieces
        if y > 128 + 26 and (x - 52) % panel < 1 and length == 128
    }
    assert lower_left[0] == svg.shade(0)  # 1e-5
    assert lower_left[1] == svg.shade(round(0.4 * 11) / 11)  # 1e-3
    assert lower_left[2] == svg.shade(1)  # a hundred times as much
    assert sum(length for pieces in strokes.values() for _, _, length in pieces) == 3 * 3 * 128
    texts = _texts(drawing)
    assert texts[:2] == ["post", "restored"]
    assert "log restored / post" in texts
    assert any("layer 33, head 8; n = 1 prompt of 8192 tokens" in text for text in texts)


def test_a_map_alone_has_no_ratio():
    assert not any("log" in text for text in _texts(map_figure([_map("pre", ((1.0,),))])))


@pytest.mark.parametrize("amplitude", [1.0, 1e3])
def test_the_line_of_a_fit_has_its_slope_also_where_it_leaves_the_axis(amplitude):
    rate = BootstrapValue(value=0.5, interval=None)
    fit = DecayFit(amplitude=amplitude, rate=rate, r_squared=1.0, first=1, last=40)
    curve = DistanceCurve(first=1, mean=tuple(0.9 - 0.02 * i for i in range(40)), low=(), high=())
    record = Autocorrelation(
        source="chains", data=PARENT, reading="ratio_of_sums", n=1, tokens=900, too_short=0,
        chance=0.1, curve=curve, fit=fit, tail=None, settings={},
    )  # fmt: skip
    lines = re.findall(
        r'<line x1="([^"]+)" y1="([^"]+)" x2="([^"]+)" y2="([^"]+)" stroke="#',
        autocorrelation_figure([record]),
    )
    ((x1, y1, x2, y2),) = [tuple(map(float, line)) for line in lines]
    per_token, per_decade = (520 - 64 - 16) / 40, 260  # the axis covers one decade
    slope = (y2 - y1) / (x2 - x1) * per_token / per_decade
    assert slope == pytest.approx(0.5 / math.log(10), rel=0.02)
    assert 20 <= y1 < y2 <= 280


@pytest.mark.parametrize("fitted", [True, False])
def test_a_decay_says_n_and_its_scale_with_its_interval(fitted):
    rate = BootstrapValue(
        value=0.1, interval=Interval(low=0.05, high=0.2, level=0.95, method="document_bootstrap")
    )
    fit = DecayFit(amplitude=1.0, rate=rate, r_squared=1.0, first=1, last=4)
    record = Autocorrelation(
        source="chains", data=PARENT, reading="ratio_of_sums", n=12, tokens=900, too_short=0,
        chance=0.1,
        curve=DistanceCurve(
            first=1, mean=(0.5, 0.3, -0.1, 0.1), low=(0.4, 0.2, -0.2, 0.0), high=(0.6, 0.4, 0, 0.2)
        ),
        fit=fit if fitted else None, tail=None, settings={},
    )  # fmt: skip
    texts = _texts(autocorrelation_figure([record]))
    said = "1/e in 10 [5, 20] tokens" if fitted else "no decay above chance"
    assert f"chains: n = 12, {said}" in texts
    assert any("token autocorrelation, ratio of sums" in text for text in texts)


def test_distances_stand_by_layer_with_how_many_heads_fell():
    def heads(factor):
        return tuple(
            HeadReading(
                layer=layer, head=head, distance=factor * 100.0, entropy=1.0, needle_mass=None
            )
            for layer in (3, 33)
            for head in (0, 1)
        )

    found = [
        HeadDistances(
            role=role, checkpoint=PARENT, inputs=PARENT, n=8, tokens=(8190, 8192),
            heads=heads(factor), settings={},
        )
        for role, factor in (("pre", 1), ("post", 0.5))
    ]  # fmt: skip
    layers = tuple(
        LayerShift(layer=layer, shortened=k, heads=2, mean_shift=-50.0)
        for layer, k in ((33, 2), (3, 1))
    )
    shift = DistanceShift(first="pre", second="post", n=8, layers=layers, heads=())
    drawing = distance_figure(found, [shift])
    texts = _texts(drawing)
    assert texts.index("1/2") < texts.index("2/2")  # layer 3, then layer 33
    assert {"3", "33", "pre", "post", "100"} <= set(texts)
    assert any("n = 8 texts of 8190-8192 tokens" in text for text in texts)
    lines = re.findall(r'<polyline points="([^"]+)"', drawing)
    heights = {points.split()[0].split(",")[1] for points in lines[::2]}
    assert len(heights) == 2
