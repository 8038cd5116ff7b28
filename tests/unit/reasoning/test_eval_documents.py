"""Problems of benchmarks: the same from any file, and every other kind of file is one message."""

import json
import sys
from pathlib import Path

import pytest

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.reasoning.documents import load_documents
from amnesia_bench.reasoning.tasks import TASKS
from amnesia_bench.reasoning.tasks.mathematics import gsm8k_gold
from tests.support.reasoning import problem, write_problems
from tests.support.shared import shared_path

GSM8K = TASKS["gsm8k"].source


@pytest.mark.parametrize("task", TASKS)
def test_one_data_set_has_one_hash_in_every_form(task: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    source = TASKS[task].source
    lines = write_problems(task, tmp_path / "data.jsonl")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    found = load_documents(source, lines, None)
    assert (len(found.rows), found.available) == (8, 8)
    assert found.rows[3] == {name: rows[3][name] for name in source.fields}
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"x": 1, **row}) + "\n\n" for row in rows))
    assert load_documents(source, more, None).sha256 == found.sha256
    if task != "ifeval":  # parquet has one set of keys for all arguments
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
        assert load_documents(source, tmp_path / "data.parquet", None).sha256 == found.sha256
    first = load_documents(source, lines, 3)
    assert (first.rows, first.available) == (found.rows[:3], 8)
    assert first.sha256 != found.sha256


def test_the_real_files_have_the_rows_and_fields_that_are_expected() -> None:
    for task, name in (("gsm8k", "gsm8k_test.jsonl"), ("aime24", "aime24_test.jsonl")):
        source = TASKS[task].source
        assert load_documents(source, shared_path("data", name), None).available == source.rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"question": "a", "answers": "b"}\n',
            "no field 'answer'; the fields are question",
        ),
        ('{"question": "a", "answer": 3}\n', "problem 0: answer is 3, expected str"),
        ('{"question": "a", "answer": " "}\n', "problem 0: answer is empty"),
        ('{"question": "a", "answer": null}\n', "problem 0: answer is None, expected str"),
        ('{"question": "a", "answer": "b"}\n{"question": "a", "ans', "data.jsonl:2: not JSON"),
        ("[1, 2]\n", "problem 0: not a JSON object"),
        ('{"question": "a", "answer": "b", "answer": "c"}\n', "the key 'answer' occurs twice"),
        ("", "contains no problems"),
    ],
)
def test_a_file_of_another_kind_is_one_message(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_documents(GSM8K, path, None)


def test_what_is_no_text_or_no_parquet_is_one_message(tmp_path: Path) -> None:
    for name, said in (("data.jsonl", "UTF-16"), ("data.parquet", "not Parquet, or damaged")):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00torn")
        with pytest.raises(UserError, match=said):
            load_documents(GSM8K, tmp_path / name, None)


def test_an_empty_list_of_instructions_is_named(tmp_path: Path) -> None:
    row = problem("ifeval", 0) | {"instruction_id_list": []}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="instruction_id_list is empty"):
        load_documents(TASKS["ifeval"].source, tmp_path / "data.jsonl", None)


@pytest.mark.parametrize("answer", ["no mark 5", "#### ", ""])
def test_a_gsm8k_answer_without_its_number_is_named(answer: str) -> None:
    with pytest.raises(UserError, match="no #### and number"):
        gsm8k_gold({"answer": answer})


def test_a_hub_that_cannot_be_reached_says_to_give_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(MissingEnvironmentError, match="--data FILE"):
        load_documents(GSM8K, None, None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingEnvironmentError, match="needs the package datasets"):
        load_documents(GSM8K, None, None)


def test_the_hub_is_asked_for_the_pinned_revision_and_its_size_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("datasets")
    asked = {}

    def load(name: str, config: str, *, split: str, revision: str) -> list[dict[str, str]]:
        asked.update(name=name, config=config, split=split, revision=revision)
        return [{"question": "a", "answer": "#### 1"}] * 1318

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match="has 1,318 problems, expected 1,319"):
        load_documents(GSM8K, None, None)
    assert asked == {
        "name": "openai/gsm8k",
        "config": "main",
        "split": "test",
        "revision": GSM8K.revision,
    }
