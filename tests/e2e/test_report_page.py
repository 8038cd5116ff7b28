"""Several tables on one page, as the laptop's run makes them, and the page in a real browser."""

import csv
import html
import json
import re
import shutil
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from tests.support.browser import visit
from tests.support.report_cells import TINY_ROWS, TINY_TABLES, publish, write_tiny

LENGTHS = (1024, 4096)
SEEDS = (100, 101)


def amnesia(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a_place_of_this_machine")


@pytest.fixture(scope="module")
def cells(root: Path) -> list[str]:
    return write_tiny(root / "store", seeds=SEEDS, samples=12, lengths=LENGTHS)


def given(cells: list[str], tables: tuple[str, ...] = TINY_TABLES) -> list[str]:
    return [
        *(part for name in tables for part in ("--table", name)),
        *(part for text in cells for part in ("--cells", text)),
        f"report.recall.lengths={list(LENGTHS)}".replace(" ", ""),
    ]


@pytest.fixture(scope="module")
def written(root: Path, cells: list[str]) -> Path:
    assert amnesia("report", "--out", root / "out", *given(cells)) == 0
    return root / "out"


def test_one_page_holds_every_table_and_each_has_its_files(written: Path) -> None:
    page = (written / "report.html").read_text()
    for name in TINY_TABLES:
        assert f"<section id={name}>" in page
        assert f"<a href=#{name}>" in page
        for suffix in ("md", "csv", "tex", "json"):
            assert (written / f"{name}.{suffix}").stat().st_size > 100
        assert (written / f"{name}_recall_tiny.svg").is_file()
    for name in ("tiny_table4", "tiny_controls", "tiny_trade_off"):
        drawn = (written / f"{name}_trade_off_tiny.svg").read_text()
        assert "background:#ffffff" in drawn
        assert drawn.replace("color:#1a1a1a;background:#ffffff;", "") in page


def test_cells_are_shared_by_the_tables_and_each_takes_its_own(written: Path) -> None:
    def values(table: str, row: str) -> dict[str, str]:
        lines = csv.DictReader((written / f"{table}.csv").open())
        return {line["column"]: line["value"] for line in lines if line["method"] == row}

    for name in TINY_TABLES:
        rows = list(csv.DictReader((written / f"{name}.csv").open()))
        assert {row["status"] for row in rows} == {"done"}
        assert {row["seeds"] for row in rows} == {"100 101"}
    assert values("tiny_table1", "pre") == values("tiny_table2", "pre")
    assert values("tiny_table2", "post") == values("tiny_controls", "post@tiny_instruct_short")
    assert values("tiny_table3", "restored") == values("tiny_controls", "restored@tiny_programs")
    assert values("tiny_table1", "post") == values("tiny_trade_off", "post")
    assert values("tiny_table1", "post") != values("tiny_table2", "post")


def test_a_row_is_tested_against_its_own_fine_tune_on_prompts_that_seeds_share(
    written: Path,
) -> None:
    found = json.loads((written / "tiny_controls.json").read_text())["table"]["cells"]
    by_place = {(cell["method"], cell["column"]): cell for cell in found}
    column = "niah_single_3@4096"
    restored = by_place["restored@tiny_programs", column]
    after = by_place["post@tiny_programs", column]
    assert restored["against_post"]["difference"] == pytest.approx(
        restored["value"] - after["value"]
    )
    assert (restored["n"], restored["prompts"]) == (24, 12)
    assert (restored["against_post"]["n"], restored["against_post"]["prompts"]) == (24, 12)
    assert after["against_post"] is None
    text = (written / "tiny_controls.md").read_text()
    assert (
        "NIAH-Single-3: n = 24 (2 seeds x the same 12 prompts); "
        "Problems: n = 80 (2 seeds x the same 40 prompts) x 4 answers" in text
    )
    assert "seeds 100, 101" in text


def test_claims_tell_seeds_apart_and_what_the_paper_shows(written: Path) -> None:
    claims = json.loads((written / "tiny_table1.json").read_text())["claims"]
    by_id = {claim["id"]: claim for claim in claims}
    loss = by_id["cot-sft-loses-recall"]
    assert loss["holds_in_paper"] is True
    assert by_id["loss-grows-with-length"]["holds_in_paper"] is False
    for condition in loss["conditions"]:
        assert set(condition["by_seed"]) == {"100", "101"}
        mean = sum(condition["by_seed"].values()) / 2
        assert condition["estimate"] == pytest.approx(mean)
        assert condition["theirs"] is None
    assert all(
        cell["theirs"] is None
        for cell in json.loads((written / "tiny_table1.json").read_text())["table"]["cells"]
    )
    assert (
        ", 2 of 2 seeds, p = 0.5, n = 24 (2 seeds x the same 12 prompts), paired "
        "(the smallest p that 2 seeds can give is 0.5); by seed 100 +"
        in (written / "tiny_table1.md").read_text()
    )


def test_every_number_has_its_sources_on_the_page(written: Path) -> None:
    page = (written / "report.html").read_text()
    anchors = set(re.findall(r'<td[^>]*><a href="#(source-\d+)">', page))
    listed = dict(re.findall(r"<tr id=(source-\d+)>(.*?)</tr>", page))
    assert anchors <= set(listed)
    # Recall and word problems of every row, once for each seed.
    assert len(listed) == 2 * len(TINY_ROWS) * len(SEEDS)
    for row in listed.values():
        (address,) = re.findall(r'<a href="([^"]+)">', row)
        assert (written / address).is_file()


def test_a_stage_of_many_files_is_one_source(cells: list[str], tmp_path: Path) -> None:
    label, _, folder = cells[0].partition("=")
    stage = shutil.copytree(folder, tmp_path / "stage")
    manifest = json.loads((stage / "manifest.json").read_text())
    # As an evaluation writes them: a folder for each cell.
    for i, cell in enumerate(json.loads((stage / "cells.json").read_text())):
        (stage / str(i)).mkdir()
        (stage / str(i) / "cell.json").write_text(json.dumps(cell))
    (stage / "cells.json").unlink()
    (stage / "manifest.json").write_text(json.dumps(manifest | {"files": []}))
    given_here = given([f"{label}={stage}"], ("tiny_table1",))
    assert amnesia("report", "--out", tmp_path / "out", *given_here) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert len(re.findall(r'<td[^>]*><a href="#source-1">', page)) == 6
    assert "source-2" not in page


def test_nothing_that_is_written_tells_of_this_machine(root: Path, written: Path) -> None:
    # The cells, the report and the working folder were given or known by their whole paths.
    top = f"/{root.parts[1]}/"
    for path in sorted(written.iterdir()):
        text = html.unescape(path.read_text())
        for place in (top, str(Path.cwd()), str(Path.home())):
            assert place not in text, (path.name, place)


def test_a_source_out_of_reach_is_named_by_stage_and_hash(
    cells: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amnesia_bench.reporting.paths.relative", lambda path, folder: None)
    assert amnesia("report", "--out", tmp_path / "out", *given(cells, ("tiny_table1",))) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<td>post_tiny_cot<td><code>" in page
    assert '<a href="#source-1">' in page
    assert "](" not in (tmp_path / "out" / "tiny_table1.md").read_text()


def test_what_fits_no_table_is_noted_once(
    cells: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = cells[0].replace("tiny/pre/", "tiny/pst/")
    out = tmp_path / "out"
    assert amnesia("report", "--out", out, *given([*cells, wrong])) == 0
    assert capsys.readouterr().err.count("no method 'pst' in tiny_table1, tiny_table2") == 1
    assert (out / "report.html").read_text().count("no method") == 1


def test_cells_of_no_named_fine_tune_are_refused_for_tables_of_several(
    cells: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = [text.replace("post@tiny_cot/", "post/") for text in cells]
    assert amnesia("report", "--out", tmp_path / "out", *given(bare)) == 2
    error = capsys.readouterr().err
    assert "tiny/post may be after any of these fine-tunes: tiny_cot (tiny_table1)" in error
    assert not (tmp_path / "out").exists()


def test_a_number_made_with_uncommitted_changes_is_marked_on_the_page(
    cells: list[str], tmp_path: Path
) -> None:
    label, _, folder = cells[0].partition("=")
    found = json.loads((Path(folder) / "cells.json").read_text())
    publish(tmp_path / "dirty", {"cells.json": found}, dirty=True)
    marked = [f"{label}={tmp_path / 'dirty'}", *cells[1:]]
    assert amnesia("report", "--out", tmp_path / "out", *given(marked, ("tiny_table1",))) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.search(r"</a>\*?†<small>", page)
    assert "† ../dirty/manifest.json" in page


@pytest.mark.chromium
def test_the_page_asks_for_nothing_says_nothing_and_fits_a_laptop(
    written: Path, tmp_path: Path
) -> None:
    assert "<script" not in (written / "report.html").read_text()
    seen = visit(written / "report.html", tmp_path / "profile", width=1280, height=800)
    assert seen.requests == []
    assert seen.complaints == []
    assert seen.width <= 1280
    assert seen.png.startswith(b"\x89PNG")


@pytest.mark.chromium
def test_the_papers_widest_table_fits_a_laptop(
    written: Path, cells: list[str], tmp_path: Path
) -> None:
    assert amnesia("report", "--table", "table1", "--out", tmp_path / "out") == 0
    assert visit(tmp_path / "out" / "report.html", tmp_path / "profile").width <= 1280


@pytest.mark.chromium
def test_the_browser_sees_what_a_page_does_wrong(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<div style='width:2000px'>x</div><img src='http://localhost:9/x.png'>"
        "<script>console.error('told you'); nothing()</script>"
    )
    seen = visit(page, tmp_path / "profile")
    assert "http://localhost:9/x.png" in seen.requests
    assert seen.width >= 2000
    said = "\n".join(seen.complaints)
    assert "told you" in said
    assert "nothing is not defined" in said
