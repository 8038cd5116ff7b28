"""The paper's numbers, held against the paper's text where it is at hand."""

import re

import pytest

from amnesia_bench.config.load import load_option
from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.errors import UserError
from amnesia_bench.reporting.published import (
    published_tables,
    published_value,
    read_published,
    remarks_on,
)
from amnesia_bench.reporting.table_layout import table_columns
from tests.support.shared import shared_path

SIZES = {"table1": 12 * 18, "table2": 6 * 13, "table3": 6 * 13, "table4": 6 * 5, "table10": 8 * 4}
LABELS = {
    "Pre-train": "pre",
    "+SFT": "post",
    "+QK-Restore": "restored",
    "QK-Restore": "restored",
    "QK-Pro": "qk_pro",
    "Q-Restore": "q",
    "K-Restore": "k",
    "V-Restore": "v",
    "QK-Frozen": "qk_frozen",
}
# How the first line of each table opens, in the paper's order.
HEADS = {
    "table1": "| Model | Method | NIAH-Single-1 | NIAH-Single-2 | NIAH-Single-3 | MATH500",
    "table2": "| Model | Method | NIAH-Single-1 | NIAH-Single-2 | NIAH-Single-3 | IFEval",
    "table3": "| Model | Method | NIAH-Single-1 | NIAH-Single-2 | NIAH-Single-3 | LCB-V5",
    "table4": "| Method | NIAH-Single-2 | NIAH-Single-3 | MATH500",
    "table10": "| Model | Method | NIAH-Single-2 | NIAH-Single-3 |",
}


def printed(table: str) -> list[tuple[str, str, list[str]]]:
    """Return model, method and the fields of each row of the paper's table."""
    lines = shared_path("paper", "attention_amnesia.txt").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(HEADS[table]))
    rows, model = [], "HypeNet-2B"  # Table 4 names no model
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        fields = [field for field in (part.strip() for part in line.split("|")) if field]
        if fields[0] not in LABELS:
            model, *fields = fields
        rows.append((model, LABELS[fields[0]], fields[1:]))
    return rows


@pytest.mark.parametrize("table", SIZES)
def test_every_cell_is_as_the_paper_prints_it(table: str) -> None:
    columns = [c.key for c in table_columns(load_option("report", table, [], TableConfig))]
    ours = read_published(table)
    found = {}
    for model, method, fields in printed(table):
        assert len(fields) == len(columns)
        for column, field in zip(columns, fields, strict=True):
            found[model, method, column] = float(field.partition("(")[0]) / 100
    assert found == ours
    assert len(ours) == SIZES[table]


def test_the_differences_in_parentheses_are_unsigned() -> None:
    columns = [c.key for c in table_columns(load_option("report", "table1", [], TableConfig))]
    ours, losses = read_published("table1"), []
    for model, method, fields in printed("table1"):
        for column, field in zip(columns, fields, strict=True):
            if match := re.search(r"\((.*)\)", field):
                change = ours[model, method, column] - ours[model, "post", column]
                assert 100 * abs(change) == pytest.approx(float(match.group(1)))
                if change < 0:
                    losses.append((model, column))
    assert losses == [
        ("Jet-Nemotron-2B", "niah_single_3@131072"),
        ("HypeNet-5B", "niah_single_3@65536"),
        ("HypeNet-5B", "niah_single_3@131072"),
    ]


@pytest.mark.parametrize("table", SIZES)
def test_rows_and_columns_are_those_of_the_layout(table: str) -> None:
    config = load_option("report", table, [], TableConfig)
    keys = {column.key for column in table_columns(config)}
    for model, method, column in read_published(table):
        assert model in config.models
        assert method in config.methods
        assert column in keys


def test_the_known_traps_are_as_printed_and_remarked_on() -> None:
    tables = ("table1",)
    assert published_value(tables, "HypeNet-9B", "restored", "niah_single_2@262144") == 0.196
    assert published_value(tables, "HypeNet-9B", "post", "math500 maj@16") == 0.695
    assert any("69.5" in remark for remark in remarks_on("table1"))
    sft, restored = (
        published_value(("table3",), "HypeNet-5B", method, "niah_single_3@262144")
        for method in ("post", "restored")
    )
    assert (sft, restored) == (0.914, 0.794)
    assert any("a loss" in remark for remark in remarks_on("table3"))


def test_recall_is_of_500_prompts_and_rows_before_sft_are_shared() -> None:
    for table in SIZES:
        for (_, _, column), value in read_published(table).items():
            if "@" in column and " " not in column:
                assert round(value * 500, 6) == round(value * 500)
    first = read_published("table1")
    for table in ("table2", "table3"):
        shared = {key: v for key, v in read_published(table).items() if key in first}
        before = {key: value for key, value in shared.items() if key[1] == "pre"}
        assert before == {key: first[key] for key in before}
        assert len(before) == 24


def test_a_value_is_looked_up_in_the_tables_in_order() -> None:
    both = ("table4", "table1")
    assert published_value(both, "HypeNet-2B", "post", "niah_single_3@131072") == 0.076
    assert published_value(("table4",), "HypeNet-2B", "post", "niah_single_3@131072") is None
    first, second = read_published("table4"), read_published("table1")
    assert all(first[key] == second[key] for key in first.keys() & second.keys())
    with pytest.raises(UserError, match="table5: no such table"):
        published_value(("table5",), "HypeNet-2B", "post", "x")
    assert set(published_tables()) == set(SIZES)
