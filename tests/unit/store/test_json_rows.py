"""Files of rows: every problem of one is a message that names the file and the row."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.store.json_rows import read_json_rows, read_records


@dataclass(frozen=True, kw_only=True)
class Point:
    x: int
    label: str


def test_records_are_read_in_their_order(tmp_path: Path) -> None:
    rows = [{"x": i, "label": f"ä\u2028{i}"} for i in range(3)]
    path = tmp_path / "points.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    points = [Point(x=i, label=f"ä\u2028{i}") for i in range(3)]
    assert list(read_records(Point, path, "hint")) == points
    path.write_text(json.dumps(rows))
    assert list(read_records(Point, path, "hint")) == points


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"x": 1, "label": "a"}\n{"x": 1, "la', r"points.jsonl:2: not JSON .*\nMake it again\."),
        ('{"x": 1, "label": "a"}\n{"x": "1", "label": "a"}', "points.jsonl:2: x: expected a whole"),
        ('{"x": 1, "label": "a", "x": 2}', "points.jsonl:1: not JSON .*'x' occurs twice"),
        ('{"x": 1}', "points.jsonl:1: missing key 'label'"),
        ("3", "points.jsonl:1: expected an object, got 3"),
    ],
)
def test_a_damaged_row_is_named(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "points.jsonl").write_text(text)
    with pytest.raises(UserError, match=problem):
        list(read_records(Point, tmp_path / "points.jsonl", "Make it again."))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no such file\nMake it\."):
        list(read_json_rows(tmp_path / "none.jsonl", "Make it."))
    with pytest.raises(UserError, match=r"is a folder, but a file is needed\nMake it\."):
        list(read_json_rows(tmp_path, "Make it."))
    with pytest.raises(MissingEnvironmentError, match=r"cannot be read \(File name too long\)"):
        list(read_json_rows(tmp_path / ("x" * 300), "Make it."))
