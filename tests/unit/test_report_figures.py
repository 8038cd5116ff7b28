"""Pictures are well-formed, readable by anyone, and draw what the numbers say."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from amnesia_bench.records.recall import HeatMap
from amnesia_bench.records.report import DriftCurve, LayerDrift, TaskHeatMap
from amnesia_bench.report import svg
from amnesia_bench.report.figures import drift_figure, heat_map_figure, recall_figure
from amnesia_bench.report.layout import length_label
from amnesia_bench.report.places import place_cells
from amnesia_bench.report.sources import Source, read_source
from amnesia_bench.report.tables import build_table
from tests.report_cells import forgetful, tiny_table, write_recall

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
    cells, _ = read_source(Source(folder=folder, model="tiny"), tmp_path)
    built = build_table("table1", table, place_cells(cells, table))
    drawn = recall_figure(built, "tiny")
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    lines = [node.get("points", "") for node in root.iter(f"{NAMESPACE}polyline")]
    hardest = [point.split(",") for point in lines[2].split()]
    assert float(hardest[0][0]) < float(hardest[1][0])
    assert float(hardest[0][1]) < float(hardest[1][1])  # SVG counts from the top


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


@pytest.mark.parametrize(("tokens", "label"), [(262144, "256K"), (1024, "1K"), (256, "256")])
def test_lengths_are_spelt_as_the_paper_does(tokens: int, label: str) -> None:
    assert length_label(tokens) == label
