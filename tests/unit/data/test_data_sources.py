"""Input files: read row by row, and whatever is wrong with one is named with its place."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from amnesia_bench.config.data_schema import HubSource
from amnesia_bench.data.row_forms import Columns
from amnesia_bench.data.sources import (
    InputFile,
    held_out_files,
    hub_files,
    local_files,
    read_rows,
)
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.store import parquet_rows
from amnesia_bench.store.json_rows import MAX_ROW_BYTES
from tests.support.small_data import write_rows

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


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    for path in (
        write_rows(tmp_path / "a.jsonl", [*ROWS[:1], {**ROWS[1], "id": 3}]),
        save_parquet(tmp_path / "a.parquet", [*ROWS[:1], {**ROWS[1], "id": 3}]),
    ):
        unread: set[str] = set()
        (file,) = local_files([path])
        list(read_rows(file, COLUMNS, unread))
        assert unread == ({"more", "id"} if path.suffix == ".jsonl" else {"more"})


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf", b" \r\n"])
def test_a_json_array_gives_the_same_rows_as_json_lines(
    tmp_path: Path, indent: int | None, begin: bytes
) -> None:
    rows = [*ROWS, {"question": "q" * 200_000, "answer": '"]}, {"[', "more": [{"a": {}}]}, ROWS[0]]
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_bytes(begin + text.encode() + b" \n")
        assert rows_of(tmp_path / name) == list(enumerate(rows, 1))
    (tmp_path / "none.json").write_bytes(begin + b"[ ]")
    assert rows_of(tmp_path / "none.json") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'[{"question": "q", "answer": "a"}', r"not JSON \(expected ,, found the end of the file"),
        (b'[{"question": "q", "answer": "a"} {"', r"not JSON \(expected ,, found {"),
        (b'[{"question": "q", "answer": "a"},]', r"a.json:2: not JSON"),
        (b'[{"question": "q", "answer": "a"}]]', r"the array is followed by more text"),
        (b'[{"question": "q", "answer": "a', r"a.json:1: not JSON"),
        (b'[{"question": "q", "answer": "a"}, 5]', r"a.json:2: is of type int, expected an object"),
        (b'[{"question": "q"}]', r"a.json:1: no field response or answer; it has question"),
        (b'[{"question": "q", "question": "r"}]', r"a.json:1: .*'question' occurs twice"),
        (b'[{"question": "\xff"}]', r"a.json: not UTF-8 \(invalid start byte at byte 15"),
        (b"[" * 100_000, r"a.json:1: not JSON"),
        (b"[" + b"9" * 5000 + b"]", r"a.json:1: not JSON \(Exceeds the limit"),
        ('[{"question": "q"}]'.encode("utf-16"), r"a.json: not UTF-8 but UTF-16"),
        (b'{\n "question": "q",\n "answer": "a"\n}\n', r"a.json:1: not JSON"),
        (b'{"question": "q", "question": "r"}', r"a.json:1: .*'question' occurs twice"),
    ],
)  # fmt: skip
def test_what_is_no_array_of_rows_is_named(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(UserError, match=said):
        rows_of(tmp_path / "a.json")


def bomb(path: Path, texts: pa.Array, rows: int) -> Path:
    """Save rows of one text each, as indices into a dictionary, or in lists of as many."""
    table = {"question": texts.slice(0, rows), "answer": pa.array(["a"] * rows)}
    if len(texts) > rows:
        offsets = pa.array(range(0, len(texts) + 1, len(texts) // rows), pa.int32())
        turns = pa.StructArray.from_arrays([texts], ["content"])
        table["question"] = pa.ListArray.from_arrays(offsets, turns)
    parquet.write_table(pa.table(table), path, compression="zstd")
    return path


def test_a_row_too_large_for_memory_is_refused_before_it_is_built(tmp_path: Path) -> None:
    large = "a " * (MAX_ROW_BYTES // 2 + 1)
    line = write_rows(tmp_path / "line.jsonl", [ROWS[0], {"question": large, "answer": "a"}])
    array = tmp_path / "array.json"
    array.write_text(json.dumps([ROWS[0], {"question": large, "answer": "a"}]))
    open_end = tmp_path / "open.json"
    open_end.write_text('[{"question": "' + 2 * large)
    # 300 rows of one text are 2 kB on disk, and 5 GB in Python.
    once = bomb(tmp_path / "once.parquet", dictionary([0] * 300, large), 300)
    assert once.stat().st_size < 10_000
    # Each text is small; a row of 3,000 of them is not.
    nested = bomb(tmp_path / "nested.parquet", dictionary([0] * 6000, "a " * 5_000), 2)
    for path, number in [(line, 2), (array, 2), (open_end, 1), (once, 1), (nested, 1)]:
        tracemalloc.start()
        with pytest.raises(UserError, match=rf"{path.name}:{number}: a row of more than 16 MiB"):
            rows_of(path)
        assert tracemalloc.get_traced_memory()[1] < 12 * MAX_ROW_BYTES
        tracemalloc.stop()


def dictionary(indices: list[int], *texts: str) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(texts))


def test_rows_of_a_dictionary_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    texts = ["x" * 10_000_000, "y"]
    path = bomb(tmp_path / "a.parquet", dictionary([0, 1] * 40, *texts), 80)
    tracemalloc.start()
    (file,) = local_files([path])
    lengths = [len(str(row["question"])) for _, row in read_rows(file, COLUMNS, set())]
    assert lengths == [10_000_000, 1] * 40
    assert tracemalloc.get_traced_memory()[1] < 200_000_000
    tracemalloc.stop()


def test_a_large_row_group_gives_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_parquet(tmp_path / "a.parquet", ROWS)
    wanted = rows_of(path)
    monkeypatch.setattr(parquet_rows, "_INDEXED_BYTES", 10)
    assert rows_of(path) == wanted


def test_a_parquet_page_that_expands_beyond_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "_MAX_CHUNK_BYTES", 1 << 20)
    table = pa.table({"question": ["a" * 500_000] * 20, "answer": ["a"] * 20})
    plain, indexed = tmp_path / "plain.parquet", tmp_path / "indexed.parquet"
    parquet.write_table(table, plain, compression="zstd", use_dictionary=False)
    parquet.write_table(table, indexed, compression="zstd")
    with pytest.raises(
        UserError, match=r"row group 0 of column question expands from .* to 20 values"
    ):
        rows_of(plain)
    assert len(rows_of(indexed)) == 20  # whose texts are one


def test_a_remote_file_is_read_as_a_local_one_is(tmp_path: Path) -> None:
    wanted = rows_of(write_rows(tmp_path / "a.jsonl", ROWS))
    save_parquet(tmp_path / "a.parquet", ROWS)
    for name in ("a.jsonl", "a.parquet"):
        remote = fsspec.filesystem("memory")
        remote.pipe(f"/rows/{name}", (tmp_path / name).read_bytes())
        file = InputFile(f"memory://rows/{name}", "commit:x")
        read = list(read_rows(file, COLUMNS, set()))
        assert [(n, row["answer"]) for n, row in read] == [(n, row["answer"]) for n, row in wanted]


def test_the_number_of_a_line_counts_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"question": "q", "answer": "a"}\n\n  \n{"question": "r", "answer": "b"}')
    assert [number for number, _ in rows_of(path)] == [2, 5]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"question": "q", "answer": ', r"a.jsonl:3: not JSON"),
        (b'{"question": "q", "answer": "\xff\xfe"}', r"a.jsonl:3: not UTF-8 \(invalid start byte"),
        (b'["question", "answer"]', r"a.jsonl:3: is of type list, expected an object"),
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
    (tmp_path / "packed").mkdir()
    write_rows(tmp_path / "packed" / "a.jsonl", ROWS[:1])
    (tmp_path / "packed" / "b.jsonl.gz").touch()
    (tmp_path / "tests").mkdir()
    write_rows(tmp_path / "tests" / "test.jsonl", ROWS[:1])
    for paths, said in [
        ([tmp_path / "no.jsonl"], "no such file"),
        ([tmp_path / "bare"], "contains no .parquet or .jsonl files"),
        ([tmp_path / "packed"], "b.jsonl.gz: unsupported format"),
        ([tmp_path / "tests"], r"except held-out ones \(test.jsonl\)"),
        ([tmp_path / "empty.jsonl"], "is empty"),
        ([tmp_path / "a.csv"], "unsupported format"),
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


@pytest.mark.parametrize(
    ("suffix", "hint"), [("jsonl.gz", "gunzip -k"), ("csv", "load_dataset"), ("txt", "")]
)
def test_a_format_that_is_not_read_comes_with_what_makes_it_readable(
    tmp_path: Path, suffix: str, hint: str
) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"x")
    with pytest.raises(UserError, match="unsupported format") as caught:
        local_files([tmp_path / f"a.{suffix}"])
    assert hint in (caught.value.hint or "")


def test_held_out_splits_of_a_folder_are_left_out_and_can_be_named(tmp_path: Path) -> None:
    for name in ("train-00000.jsonl", "latest.jsonl", "test-00000.jsonl", "data/validation/a.jsonl",
                 "held_out.jsonl", ".cache/b.jsonl"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(tmp_path / name, ROWS[:1])
    read = [Path(file.location).name for file in local_files([tmp_path])]
    assert read == ["latest.jsonl", "train-00000.jsonl"]
    named = tmp_path / "test-00000.jsonl"
    left = [str(path.relative_to(tmp_path)) for path in held_out_files([tmp_path])]
    assert left == ["data/validation/a.jsonl", "held_out.jsonl", "test-00000.jsonl"]
    assert len(local_files([tmp_path, named])) == 3
    assert named not in held_out_files([tmp_path, named])


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
    with pytest.raises(UserError, match="no split test; its splits are train"):
        hub_files(source(dataset, subsets=("x",), split="test"))
    with pytest.raises(UserError, match="no files after the first 3"):
        hub_files(source(dataset, subsets=("x",), skip_files=3))
