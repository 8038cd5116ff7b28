"""Pictures are well-formed, readable by anyone, and draw what the numbers say."""

from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from amnesia_bench.drawing import svg
from amnesia_bench.records.evaluation import Interval
from amnesia_bench.records.recall import HeatMap
from amnesia_bench.records.report import (
    CellStatus,
    Column,
    DriftCurve,
    LayerDrift,
    ReportedCell,
    TaskHeatMap,
    TradeOffCurve,
    TradeOffPoint,
)
from amnesia_bench.reporting.artifact_files import ArtifactFiles
from amnesia_bench.reporting.figures import drift_figure, heat_map_figure, recall_figure
from amnesia_bench.reporting.sources import read_source
from amnesia_bench.reporting.table_layout import length_label
from amnesia_bench.reporting.table_slots import fill_slots
from amnesia_bench.reporting.tables import build_table
from amnesia_bench.reporting.trade_off_figure import trade_off_figure
from amnesia_bench.requests.experiments import LabelledCells
from tests.support.report_cells import forgetful, tiny_table, write_recall

NAMESPACE = "{http://www.w3.org/2000/svg}"


def luminance(colour: str) -> float:
    """Return WCAG's relative luminance of #rrggbb."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_shades_rise_in_brightness_and_text_on_them_can_be_read() -> None:
    shades = [luminance(svg.shade(i / 100)) for i in range(101)]
    assert shades == sorted(shades)
    for i in range(101):
        ink = 1.0 if "#ffffff" in svg.tile_text(0, 0, "x", i / 100) else 0.0
        bright, dark = max(ink, shades[i]), min(ink, shades[i])
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, i
    assert svg.shade(-1) == svg.shade(0)
    assert svg.shade(2) == svg.shade(1)


def test_a_heat_map_says_recall_and_n_and_leaves_empty_fields_empty() -> None:
    counted = HeatMap(
        role="post",
        depth_edges=(0.0, 50.0, 100.0),
        context_tokens=(1024, 4096),
        correct=((1, 4), (0, 0)),
        n=((4, 4), (0, 5)),
    )
    drawn = heat_map_figure([TaskHeatMap(model="a<b", task="t", map=counted)], {"post": "+SFT"})
    root = ElementTree.fromstring(drawn)
    texts = [node.text for node in root.iter(f"{NAMESPACE}text")]
    assert texts == ["+SFT", "0-50 %", "25 (4)", "100 (4)", "50-100 %", "0 (5)", "1K", "4K"]
    tiles = [node.get("fill") for node in root.iter(f"{NAMESPACE}rect")]
    assert tiles == [svg.shade(0.25), svg.shade(1), "none", svg.shade(0)]
    assert root.find(f"{NAMESPACE}title") is not None


def test_a_curve_of_recall_is_higher_where_recall_is(tmp_path: Path) -> None:
    table = tiny_table()
    folder = write_recall(tmp_path / "post", "post", forgetful("post"))
    cells, _ = read_source(LabelledCells(folder=folder, model="tiny"), tmp_path, ArtifactFiles())
    built = build_table("table1", table, fill_slots(cells, table))
    drawn = recall_figure(built, "tiny")
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    lines = [node.get("points", "") for node in root.iter(f"{NAMESPACE}polyline")]
    hardest = [point.split(",") for point in lines[2].split()]
    assert float(hardest[0][0]) < float(hardest[1][0])
    assert float(hardest[0][1]) < float(hardest[1][1])  # SVG counts from the top


def test_rows_without_a_mark_of_their_own_are_left_to_the_table(tmp_path: Path) -> None:
    table = tiny_table()
    table = table.model_copy(update={"methods": {**table.methods, "wise_ft": "WiSE-FT"}})
    cells = []
    for method in ("post", "wise_ft"):
        folder = write_recall(tmp_path / method, method, forgetful("post"))
        source = LabelledCells(folder=folder, model="tiny")
        cells += read_source(source, tmp_path, ArtifactFiles())[0]
    built = build_table("table1", table, fill_slots(cells, table))
    drawn = recall_figure(built, "tiny")
    assert drawn is not None
    assert "+SFT" in drawn
    assert "WiSE-FT" not in drawn
    assert any(cell.method == "wise_ft" and cell.value is not None for cell in built.cells)


def test_drift_is_drawn_per_role_with_marks_that_differ() -> None:
    layers = tuple(
        LayerDrift(layer=layer, role=role, drift=drift)
        for layer, role, drift in ((3, "q", 0.1), (7, "q", 0.2), (3, "k", 0.05), (7, "k", 0.0))
    )
    root = ElementTree.fromstring(
        drift_figure([DriftCurve(label="run", source="s", layers=layers)] * 5)
    )
    assert len(list(root.iter(f"{NAMESPACE}polyline"))) == 2 * 5 + 2
    assert len(list(root.iter(f"{NAMESPACE}circle"))) == 2 * 5 + 2
    assert len(list(root.iter(f"{NAMESPACE}polygon"))) == 2 * 5 + 2


# Machado, Oliveira and Fernandes (2009), severity 1: what of linear red, green and blue is seen.
BLINDNESS = {
    "none": np.eye(3),
    "protan": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deutan": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritan": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def seen_lab(colour: str, blindness: str) -> NDArray[np.float64]:
    """Return CIE L*a*b* of #rrggbb as it is seen."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = (BLINDNESS[blindness] @ linear).clip(0, 1)
    x, y, z = np.cbrt(TO_XYZ @ seen / (0.9505, 1.0, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLINDNESS)
@pytest.mark.parametrize("ink", ["#1a1a1a", "#e8e8e8"])  # of a bright page and of a dark one
def test_methods_are_told_apart_by_every_eye(blindness: str, ink: str) -> None:
    marks = [*svg.MARKS.values(), svg.OTHER_MARK]
    for one, other in combinations(marks, 2):
        assert (one.shape, one.colour) != (other.shape, other.colour)
        if one.shape == other.shape:
            colours = [ink if mark.colour == svg.INK else mark.colour for mark in (one, other)]
            first, second = (seen_lab(colour, blindness) for colour in colours)
            assert np.linalg.norm(first - second) > 15, (one, other)


def reported(value: float, low: float, high: float) -> ReportedCell:
    return ReportedCell(
        model="tiny",
        method="any",
        column="any",
        status=CellStatus.DONE,
        reason=None,
        value=value,
        interval=Interval(low=low, high=high, level=0.95, method="wilson"),
        n=100,
        prompts=100,
        repeats=1,
        by_seed={},
        theirs=None,
        difference=None,
        against_post=None,
        origins=(),
    )


def test_a_trade_off_shows_both_intervals_and_joins_what_it_is_told_to() -> None:
    column = Column(
        key="k",
        group="NIAH-Single-3",
        label="4K",
        task="t",
        metric="m",
        scorer=None,
        context_tokens=None,
    )
    numbers = {"pre": (0.9, 0.1), "post": (0.3, 0.8), "restored@x": (0.7, 0.75)}
    points = tuple(
        TradeOffPoint(
            row=row,
            label=f"<{row}>",
            recall=reported(recall, recall - 0.05, recall + 0.05),
            score=reported(score, score - 0.02, score + 0.02),
        )
        for row, (recall, score) in numbers.items()
    )
    lines = (("pre", "post"), ("post", "restored@x", "not there"))
    curve = TradeOffCurve(model="tiny", recall=column, score=column, points=points, lines=lines)
    root = ElementTree.fromstring(trade_off_figure(curve))
    texts = {node.text for node in root.iter(f"{NAMESPACE}text")}
    assert {"<pre>", "<post>", "<restored@x>", "NIAH-Single-3 at 4K, per cent"} <= texts
    drawn = [
        {name: float(node.get(name, "")) for name in ("x1", "y1", "x2", "y2", "stroke-opacity")}
        for node in root.iter(f"{NAMESPACE}line")
    ]
    bars = [each for each in drawn if each["stroke-opacity"] == 1]
    level = [each for each in bars if each["y1"] == each["y2"]]
    upright = [each for each in bars if each["x1"] == each["x2"]]
    assert len(level) == len(upright) == 3
    pre, post, restored = ((up["x1"], flat["y1"]) for up, flat in zip(upright, level, strict=True))
    joined = {((each["x1"], each["y1"]), (each["x2"], each["y2"])) for each in drawn}
    assert {(pre, post), (post, restored)} <= joined
    # More recall is higher, more reasoning further right.
    assert level[0]["y1"] < level[2]["y1"] < level[1]["y1"]
    assert upright[0]["x1"] < upright[2]["x1"] < upright[1]["x1"]


@pytest.mark.parametrize(("tokens", "label"), [(262144, "256K"), (1024, "1K"), (256, "256")])
def test_lengths_are_spelt_as_the_paper_does(tokens: int, label: str) -> None:
    assert length_label(tokens) == label
