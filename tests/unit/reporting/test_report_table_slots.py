"""Which table and row a label means: fine-tunes keep apart what has the same method."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from amnesia_bench.cli.report import parse_cells
from amnesia_bench.config.files import options
from amnesia_bench.config.load import load_option
from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.errors import UserError
from amnesia_bench.reporting.artifact_files import ArtifactFiles
from amnesia_bench.reporting.sources import CellEntry, read_source
from amnesia_bench.reporting.table_layout import after_sft, full_name
from amnesia_bench.reporting.table_slots import (
    engine_notes,
    fill_slots,
    refuse_ambiguous,
    unused_cells,
    without_column,
)
from tests.support.report_cells import forgetful, tiny_overrides, write_recall

PAPERS = ("table1", "table2", "table3", "table4")


@pytest.fixture(scope="module")
def tables() -> dict[str, TableConfig]:
    shorter = tiny_overrides()
    return {name: load_option("report", name, shorter, TableConfig) for name in PAPERS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells") / "any"
    return write_recall(folder, "any", forgetful("pre"), samples=2, tasks=["niah_single_3"])


def cells(folder: Path, *labels: str) -> list[CellEntry]:
    read = [
        read_source(parse_cells(f"{label}={folder}"), folder, ArtifactFiles()) for label in labels
    ]
    return [cell for found, _ in read for cell in found]


def rows(found: list[CellEntry], tables: dict[str, TableConfig]) -> dict[str, set[str]]:
    return {name: {row for _, row, _ in fill_slots(found, table)} for name, table in tables.items()}


def test_a_fine_tunes_cells_are_in_its_tables_and_those_before_any_in_all(
    tables: dict[str, TableConfig], folder: Path
) -> None:
    found = cells(
        folder, "tiny/pre", "tiny/post@miromind", "tiny/v@miromind", "tiny/restored@tulu3"
    )
    refuse_ambiguous(found, tables)
    assert rows(found, tables) == {
        "table1": {"pre", "post"},
        "table2": {"pre", "restored"},
        "table3": {"pre"},
        "table4": {"pre", "post", "v"},
    }


def test_without_its_name_a_fine_tune_must_be_the_only_one(
    tables: dict[str, TableConfig], folder: Path
) -> None:
    found = cells(folder, "tiny/pre", "tiny/post")
    with pytest.raises(UserError, match="may be after any of these fine-tunes") as caught:
        refuse_ambiguous(found, tables)
    assert "tulu3 (table2)" in caught.value.what
    assert "--cells tiny/post@miromind=" in str(caught.value.hint)
    same = {name: tables[name] for name in ("table1", "table4")}
    refuse_ambiguous(found, same)
    assert rows(found, same) == {"table1": {"pre", "post"}, "table4": {"pre", "post"}}


def test_a_control_table_holds_rows_of_several_fine_tunes(folder: Path) -> None:
    table = load_option("report", "tiny_controls", tiny_overrides(), TableConfig)
    found = cells(
        folder, "tiny/post@tiny_cot", "tiny/post@tiny_programs", "tiny/q@tiny_cot", "tiny/post@x"
    )
    assert rows(found, {"controls": table}) == {"controls": {"post", "post@tiny_programs"}}
    assert after_sft("restored@tiny_programs", table.sft) == "post@tiny_programs"
    assert after_sft("restored", table.sft) == after_sft("pre", table.sft) == "post"
    assert after_sft("post@tiny_programs", table.sft) is None
    assert full_name("restored", table.sft) == "restored@tiny_cot"
    assert full_name("pre", table.sft) == "pre"


def test_what_fits_nowhere_is_said_once_with_the_nearest_name(
    tables: dict[str, TableConfig], folder: Path
) -> None:
    found = cells(folder, "tiny/post@miromnd", "tiny/pst@tulu3", "tinny/pre", "tiny/pre")
    placed = [fill_slots(found, table) for table in tables.values()]
    said = unused_cells(found, placed, tables)
    assert len(said) == 3
    assert "no method 'post@miromnd' in table1, table2, table3, table4" in said[0]
    assert "Did you mean post@miromind?" in said[0]
    assert "no model 'tinny'" in said[2]


def test_an_artifact_that_is_used_in_part_is_not_spoken_of(
    tables: dict[str, TableConfig], tmp_path: Path
) -> None:
    write_recall(tmp_path / "a", "pre", forgetful("pre"), samples=2, lengths=(512, 1024))
    # As an evaluation writes them: a folder and a file for each cell.
    written = json.loads((tmp_path / "a" / "cells.json").read_text())
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    for i, cell in enumerate(written):
        (tmp_path / "a" / str(i)).mkdir()
        (tmp_path / "a" / str(i) / "cell.json").write_text(json.dumps(cell))
    (tmp_path / "a" / "cells.json").unlink()
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest | {"files": []}))
    found = cells(tmp_path / "a", "tiny/pre")
    placed = [fill_slots(found, table) for table in tables.values()]
    assert len(found) == 6
    assert unused_cells(found, placed, tables) == ()
    names = ", ".join(tables)
    lacking = ", ".join(f"niah_single_{n} at 512" for n in (1, 2, 3))
    assert without_column(found, placed, tables) == (f"no column in {names}: {lacking}",)


def test_cells_of_other_lengths_are_said_to_have_no_column(
    tables: dict[str, TableConfig], tmp_path: Path
) -> None:
    write_recall(tmp_path / "a", "pre", forgetful("pre"), samples=2, lengths=(512,))
    found = cells(tmp_path / "a", "tiny/pre")
    placed = [fill_slots(found, table) for table in tables.values()]
    (said,) = unused_cells(found, placed, tables)
    assert "no column" in said


def test_some_with_and_some_without_a_seed_are_refused(
    tables: dict[str, TableConfig], folder: Path
) -> None:
    found = cells(folder, "tiny/pre", "tiny/pre/1")
    with pytest.raises(UserError, match="with and without a seed"):
        fill_slots(found, tables["table1"])


def test_answers_of_one_seed_do_not_pass_for_anothers(
    tables: dict[str, TableConfig], folder: Path
) -> None:
    found = cells(folder, "tiny/pre/1", "tiny/pre/2")
    slots = fill_slots(found, tables["table1"])
    placed = slots["tiny", "pre", "niah_single_3@1024"]
    assert {seed for seed, _, _ in placed.answers} == {"1", "2"}
    assert (placed.n, placed.prompts) == (4, 2)
    assert placed.cells[0] == replace(placed.cells[1], seed="1", origin=placed.cells[0].origin)


@pytest.mark.parametrize("name", options("report"))
def test_every_table_stands_for_one_whose_claims_it_repeats(name: str) -> None:
    table = load_option("report", name, [], TableConfig)
    assert bool(table.published) == (not name.startswith(("tiny_", "gemma_", "one_gpu_")))
    if table.stands_for is not None:
        paper = load_option("report", table.stands_for, [], TableConfig)
        assert set(table.methods) == set(paper.methods)
        for claim, ours in table.claims.items():
            if (theirs := paper.claims.get(claim)) is None:
                assert ours.place.startswith("of this project")
                continue
            assert (ours.above, ours.aim) == (theirs.above, theirs.aim)
            assert ours.weights == theirs.weights


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("report.scores=[]", "no column gsm8k"),
        ("report.methods={pre: a, post@tiny_cot: b}", "row post@tiny_cot: expected METHOD"),
        ("report.methods={pre: a, post@: b}", "row post@: expected METHOD"),
        ("report.trade_off.lines=[[pre, nothing]]", "no row nothing"),
        ("report.trade_off.recall=niah_single_3@77", "trade_off.recall: no column"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_option("report", "tiny_controls", [override], TableConfig)


def test_scores_of_a_tiny_table_may_be_changed_alone() -> None:
    score = "report.scores=[{task: gsm8k, metric: avg@1, scorer: strict, label: Problems Avg@1}]"
    table = load_option("report", "tiny_table1", [score], TableConfig)
    assert [each.key for each in table.scores] == ["gsm8k avg@1"]


def test_the_engines_of_a_tables_cells_are_noted(
    tables: dict[str, TableConfig], folder: Path
) -> None:
    def made_by(engine: str, label: str) -> list[CellEntry]:
        settings = {"engine": engine, engine: "1.2"}
        return [
            replace(entry, cell=replace(entry.cell, settings=settings))
            for entry in cells(folder, label)
        ]

    def notes(*entries: list[CellEntry]) -> tuple[str, ...]:
        return engine_notes(
            fill_slots([cell for given in entries for cell in given], tables["table1"])
        )

    assert notes() == ()
    assert notes(made_by("vllm", "tiny/pre"), made_by("vllm", "tiny/post@miromind")) == (
        "Inference engine: vllm 1.2",
    )
    (note,) = notes(made_by("vllm", "tiny/pre"), made_by("transformers", "tiny/post@miromind"))
    assert "different inference engines" in note
    assert "vllm 1.2 (tiny pre niah_single_3@1024" in note
    assert "transformers 1.2 (tiny post niah_single_3@1024" in note
