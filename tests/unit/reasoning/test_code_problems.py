from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.code.problems import (
    FILES,
    WINDOWS,
    ProblemKind,
    ProgramTest,
    load_problems,
    problems_identity,
)
from tests.support.lcb import ROWS, encode, row, write_rows

SIZES = dict(zip(FILES, (400, 111, 101, 101, 167), strict=True))


def changed(**fields: Any) -> dict[str, Any]:
    return {**row("one", [("1", "2"), ("3", "4")]), **fields}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """All 880 problems in five files, as the hub has them; 279 are of August 2024 or later."""
    number = 0
    for name, size in SIZES.items():
        lines = []
        for _ in range(size):
            date = "2024-08-01T00:00:00" if number >= 880 - 279 else "2024-07-31T00:00:00"
            lines.append({**changed(question_id=f"q{number}", contest_date=date)})
            number += 1
        write_rows(tmp_path / name, lines)
    return tmp_path


class TestWindows:
    @pytest.mark.parametrize("window", WINDOWS)
    def test_each_has_the_number_of_problems_it_is_named_after(
        self, window: int, release: Path
    ) -> None:
        problems = load_problems(window, path=release)
        assert len(problems) == window
        assert problems[-1].name == "q879"

    def test_default_is_release_5_without_release_2(self, release: Path) -> None:
        assert load_problems(369, path=release)[0].name == f"q{SIZES[FILES[0]] + SIZES[FILES[1]]}"

    def test_a_missing_problem_is_an_error_and_not_a_smaller_benchmark(self, release: Path) -> None:
        file = release / "test4.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
        with pytest.raises(UserError, match=r"368 problems in .* not 369"):
            load_problems(369, path=release)

    def test_an_unknown_window_is_refused(self) -> None:
        with pytest.raises(UserError, match="window=400") as refused:
            load_problems(400)
        assert "369, 880, 279, 167" in str(refused.value)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"test5.jsonl: cannot be read: No such file"):
            load_problems(167, path=tmp_path)

    def test_without_a_network_the_error_says_what_to_download(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub = pytest.importorskip("huggingface_hub")

        def offline(*_: object, **__: object) -> str:
            raise hub.errors.LocalEntryNotFoundError("offline")

        monkeypatch.setattr(hub, "hf_hub_download", offline)
        with pytest.raises(UserError, match=r"code_generation_lite: test5.jsonl of revision 0fe84"):
            load_problems(167)


class TestReading:
    def test_public_tests_come_before_private_ones(self, tmp_path: Path) -> None:
        (problem,) = load_problems(369, path=write_rows(tmp_path / "p", [changed()]))
        assert problem.tests() == (
            ProgramTest(input="1", output="2"),
            ProgramTest(input="3", output="4"),
        )
        assert problem.kind is ProblemKind.STDIN

    def test_private_tests_may_be_plain_json(self, tmp_path: Path) -> None:
        plain = changed(private_test_cases=json.dumps([{"input": "5", "output": "6"}]))
        (problem,) = load_problems(369, path=write_rows(tmp_path / "p", [plain]))
        assert problem.tests()[1] == ProgramTest(input="5", output="6")

    def test_a_name_of_a_function_makes_a_problem_functional(self, tmp_path: Path) -> None:
        problems = load_problems(369, path=write_rows(tmp_path / "p", ROWS))
        kinds = {problem.name: (problem.kind, problem.function) for problem in problems}
        assert kinds["double"] == (ProblemKind.STDIN, None)
        assert kinds["add"] == (ProblemKind.FUNCTIONAL, "add")

    def test_identity_changes_with_any_test_and_with_the_order(self, tmp_path: Path) -> None:
        other = [*ROWS[:-1], {**ROWS[-1], "private_test_cases": encode([])}]
        rows = (ROWS, other, ROWS[::-1])
        files = [write_rows(tmp_path / str(i), lines) for i, lines in enumerate(rows)]
        assert len({problems_identity(load_problems(369, path=file)) for file in files}) == 3

    def test_empty_lines_are_no_problems(self, tmp_path: Path) -> None:
        file = write_rows(tmp_path / "p", ROWS)
        file.write_text(file.read_text().replace("\n", "\n\n"))
        problems = load_problems(369, path=file)
        assert [len(problem.tests()) for problem in problems[:2]] == [3, 2]


class TestBadInput:
    @pytest.mark.parametrize("name", ["question_content", "private_test_cases", "contest_date"])
    def test_a_renamed_field_is_named_with_its_line(self, name: str, tmp_path: Path) -> None:
        renamed = changed()
        renamed["other"] = renamed.pop(name)
        file = write_rows(tmp_path / "p", [changed(), renamed])
        with pytest.raises(UserError, match=f"line 2: field '{name}' is missing or not text"):
            load_problems(369, path=file)

    def test_a_torn_last_line_is_refused(self, tmp_path: Path) -> None:
        file = write_rows(tmp_path / "p", ROWS)
        file.write_bytes(file.read_bytes()[:-40])
        with pytest.raises(UserError, match=f"line {len(ROWS)}: not valid JSON, perhaps cut off"):
            load_problems(369, path=file)

    @pytest.mark.parametrize(
        "change", [{"metadata": "{"}, {"metadata": "[]"}, {"contest_date": "some day"}]
    )
    def test_unreadable_metadata_is_refused(self, change: dict[str, str], tmp_path: Path) -> None:
        file = write_rows(tmp_path / "p", [changed(**change)])
        with pytest.raises(UserError, match="line 1: metadata or contest_date is not valid"):
            load_problems(369, path=file)

    def test_an_empty_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "p").touch()
        with pytest.raises(UserError, match="is empty"):
            load_problems(369, path=tmp_path / "p")

    def test_no_tests_are_refused_since_all_programs_would_pass(self, tmp_path: Path) -> None:
        none = changed(public_test_cases="[]", private_test_cases="[]")
        (problem,) = load_problems(369, path=write_rows(tmp_path / "p", [none]))
        with pytest.raises(UserError, match="has no tests"):
            problem.tests()

    def test_a_file_that_changed_after_loading_is_refused(self, tmp_path: Path) -> None:
        file = write_rows(tmp_path / "p", [changed()])
        (problem,) = load_problems(369, path=file)
        write_rows(file, [changed(question_id="two")])
        with pytest.raises(UserError, match="changed since one was read"):
            problem.tests()

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace"

        class Hostile:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (trace,)

        hostile = base64.b64encode(zlib.compress(pickle.dumps(Hostile()))).decode()
        file = write_rows(tmp_path / "p", [changed(private_test_cases=hostile)])
        (problem,) = load_problems(369, path=file)
        with pytest.raises(UserError, match="tests must not contain code"):
            problem.tests()
        assert not trace.exists()

    @pytest.mark.parametrize(
        "data",
        [
            "not base64!",
            base64.b64encode(b"not zlib").decode(),
            base64.b64encode(zlib.compress(b"no pickle")).decode(),
            base64.b64encode(zlib.compress(pickle.dumps(5))).decode(),
            base64.b64encode(zlib.compress(pickle.dumps("[1]"))[:-6]).decode(),
        ],
    )
    def test_damaged_private_tests_are_refused(self, data: str, tmp_path: Path) -> None:
        file = write_rows(tmp_path / "p", [changed(private_test_cases=data)])
        (problem,) = load_problems(369, path=file)
        with pytest.raises(UserError, match="one: private tests cannot be decoded"):
            problem.tests()

    def test_a_test_without_an_output_is_refused(self, tmp_path: Path) -> None:
        half = changed(public_test_cases=json.dumps([{"input": "1"}]))
        (problem,) = load_problems(369, path=write_rows(tmp_path / "p", [half]))
        with pytest.raises(UserError, match="a test without input and output"):
            problem.tests()
