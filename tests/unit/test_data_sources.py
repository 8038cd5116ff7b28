"""Input files: read row by row, and whatever is wrong with one is named with its place."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from amnesia_bench.config.data_schema import HubSource
from amnesia_bench.data.json_rows import MAX_ROW_BYTES
from amnesia_bench.data.row_forms import Columns
from amnesia_bench.data.sources import held_out_files, hub_files, local_files, read_rows
from amnesia_bench.errors import StageFailedError, UserError
from tests.small_data import write_rows

COLUMNS = Columns(required=(("question",), ("response", "answer")), optional=("system",))
ROWS = [{"question": f"q{i}", "answer": f"ä{i}", "more": i} for i in range(600)]


def rows_of(path: Path) -> list[tuple[int, Any]]:
    (file,) = local_files([path])
    return list(read_rows(file, COLUMNS, set()))


def save_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    return path


def test_json_lines_and_parquet_give_the_same_rows_numbered_from_1(tmp_path: Path) -> None:
    lines = rows_of(write_rows(tmp_path / "a.jsonl", ROWS))
    table = rows_of(save_parquet(tmp_path / "a.parquet", ROWS))
    wanted = [{"question": row["question"], "answer": row["answer"]} for row in ROWS]
    assert table == list(enumerate(wanted, 1))  # fields that are not needed are not even read
    assert [(n, row["question"], row["answer"]) for n, row in lines] == [
        (n, row["question"], row["answer"]) for n, row in table
    ]


def test_the_number_of_a_line_counts_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"question": "q", "answer": "a"}\n\n  \n{"question": "r", "answer": "b"}')
    assert [number for number, _ in rows_of(path)] == [2, 5]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"question": "q", "answer": ', r"a.jsonl:3: not JSON"),
        (b'{"question": "q", "answer": "\xff\xfe"}', r"a.jsonl:3: not UTF-8 \(invalid start byte"),
        (b'["question", "answer"]', r"a.jsonl:3: a list, expected an object"),
        (b'{"problem": "q", "answer": "a"}', r"a.jsonl:3: no field question; it has problem, ans"),
        (b'{"question": "q", "text": "a"}', r"a.jsonl:3: no field response or answer; it has q"),
        (b"[" * 100_000, r"a.jsonl:3: not JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    good = b'{"question": "q", "answer": "a"}\n'
    path.write_bytes(good * 2 + line + b"\n" + good)
    with pytest.raises(UserError, match=said):
        rows_of(path)


def test_a_parquet_file_whose_fields_changed_or_that_is_damaged_is_named(tmp_path: Path) -> None:
    renamed = save_parquet(tmp_path / "a.parquet", [{"problem": "q", "answer": "a"}])
    with pytest.raises(UserError, match=r"a.parquet: no field question; it has problem, answer"):
        rows_of(renamed)
    half = tmp_path / "half.parquet"
    whole = save_parquet(tmp_path / "whole.parquet", ROWS).read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half.parquet: not Parquet, or damaged"):
        rows_of(half)


def test_files_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "a.jsonl", ROWS[:1])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "a.csv").write_text("question,answer")
    (tmp_path / "bare").mkdir()
    for paths, said in [
        ([tmp_path / "no.jsonl"], "no such file"),
        ([tmp_path / "bare"], "holds no .parquet and no .jsonl files"),
        ([tmp_path / "empty.jsonl"], "is empty"),
        ([tmp_path / "a.csv"], "not one of the formats"),
        ([good, good], "names a file twice"),
    ]:
        with pytest.raises(UserError, match=said):
            local_files(paths)


def test_a_folder_stands_for_the_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    save_parquet(tmp_path / "below" / "b.parquet", ROWS[:1])
    write_rows(tmp_path / "a.jsonl", ROWS[:1])
    (tmp_path / "settings.json").write_text("{}")
    assert names(local_files([tmp_path])) == [f"{tmp_path.name}/a.jsonl", "below/b.parquet"]


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    (file,) = local_files([path])
    rows = read_rows(file, COLUMNS, set())
    next(rows)
    write_rows(path, [*ROWS, ROWS[0]])
    with pytest.raises(StageFailedError, match=r"a.jsonl: changed while it was read"):
        list(rows)


def test_a_file_that_vanished_is_an_error_of_reading_not_of_writing(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    (file,) = local_files([path])
    path.unlink()
    with pytest.raises(StageFailedError, match=r"a.jsonl: cannot be read"):
        list(read_rows(file, COLUMNS, set()))


def source(dataset: str, **changes: Any) -> HubSource:
    values = {"dataset": dataset, "subsets": ("default",), "split": "train",
              "revision": "0" * 40, "skip_files": 0, "take_files": None}  # fmt: skip
    return HubSource(**(values | changes))


def test_without_a_commit_nothing_is_read_from_the_hub() -> None:
    with pytest.raises(UserError, match=r"a/b is null") as caught:
        hub_files(source("a/b", revision=None))
    assert "git ls-remote https://huggingface.co/datasets/a/b HEAD" in str(caught.value.hint)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A dataset in the hub's layout, which `datasets` resolves without a network."""
    for subset, count in (("x", 3), ("y", 1)):
        (tmp_path / "set" / subset).mkdir(parents=True)
        for i in range(count):
            save_parquet(tmp_path / "set" / subset / f"{i}.parquet", ROWS[:2])
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs:\n- config_name: x\n  data_files: x/*.parquet\n"
        "- config_name: y\n  data_files: y/*.parquet\n---\n"
    )
    return str(tmp_path / "set")


def names(files: list[Any]) -> list[str]:
    return ["/".join(file.location.split("/")[-2:]) for file in files]


def test_the_files_of_each_subset_are_taken_in_order(dataset: str) -> None:
    assert names(hub_files(source(dataset, subsets=("x", "y")))) == [
        "x/0.parquet", "x/1.parquet", "x/2.parquet", "y/0.parquet",
    ]  # fmt: skip
    assert names(hub_files(source(dataset, subsets=("x",), skip_files=1, take_files=1))) == [
        "x/1.parquet"
    ]
    files = hub_files(source(dataset, subsets=("y",)))
    assert [row["question"] for _, row in read_rows(files[0], COLUMNS, set())] == ["q0", "q1"]


def test_a_subset_a_split_or_a_file_that_is_not_there_is_named(dataset: str) -> None:
    with pytest.raises(UserError, match="subset z"):
        hub_files(source(dataset, subsets=("z",)))
    with pytest.raises(UserError, match="no split test; it has train"):
        hub_files(source(dataset, subsets=("x",), split="test"))
    with pytest.raises(UserError, match="no files after the first 3"):
        hub_files(source(dataset, subsets=("x",), skip_files=3))
