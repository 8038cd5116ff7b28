"""A dozen problems in LiveCodeBench's schema, and programs with the verdicts its checker gives."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia_bench.config.eval_schema import Think
from amnesia_bench.reasoning.task import Attempt
from amnesia_bench.records.evaluation import Outcome, SampleKey
from amnesia_bench.tokenizers.chat_format import without_thinking

THINK = Think(open="<think>", close="</think>")


def encode(tests: list[dict[str, str]]) -> str:
    """Private tests, as the dataset stores them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def row(name: str, tests: list[tuple[str, str]], function: str | None = None) -> dict[str, Any]:
    kind = "stdin" if function is None else "functional"
    cases = [{"input": i, "output": o, "testtype": kind} for i, o in tests]
    starter = "" if function is None else f"class Solution:\n    def {function}(self, x):\n        "
    return {
        "question_title": name,
        "question_content": f"Solve {name}.",
        "platform": "atcoder" if function is None else "leetcode",
        "question_id": name,
        "contest_id": "contest",
        "contest_date": "2024-09-01T00:00:00",
        "starter_code": starter,
        "difficulty": "easy",
        "public_test_cases": json.dumps(cases[:1]),
        "private_test_cases": encode(cases[1:]),
        "metadata": json.dumps({} if function is None else {"func_name": function}),
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in rows), encoding="utf-8")
    return path


LARGE = "200000\n" + " ".join(map(str, range(200000))) + "\n"

ROWS = [
    row("double", [("3\n", "6\n"), ("10\n", "20\n"), ("-1\n", "-2\n")]),
    row("half", [("1\n", "0.5\n"), ("3\n", "1.5\n")]),
    row("echo", [("héllo ✓\n", "héllo ✓\n"), ("日本\n", "日本\n")]),
    row("sum of lines", [("2\n1\n2\n", "3\n"), ("3\n1\n2\n3\n", "6\n")]),
    row("large sum", [("2\n1 2\n", "3\n"), (LARGE, f"{199999 * 100000}\n")]),
    row("grid", [("2\n", "1 2\n2 4\n"), ("1\n", "1\n")]),
    row("blank line", [("a\n\nb\n", "a b\n")]),
    row("depth", [("1000\n", "1000\n"), ("20000\n", "20000\n")]),
    row("add", [("1\n2", "3"), ("-5\n5", "0")], "add"),
    row("pairs", [("[3, 1]", "[1, 3]"), ("[]", "[]")], "pairs"),
    row("nested", [("2", "[[0, 1], [1, 2]]")], "nested"),
    row("halves", [("1", "0.5"), ("4", "2.0")], "halves"),
    row("words", [('["é", "b"]', '{"é": 1, "b": 1}')], "words"),
    row("power", [("3", "1000"), ("400", "1" + "0" * 400)], "power"),
]
INDEX = {line["question_id"]: number for number, line in enumerate(ROWS)}


@dataclass(frozen=True)
class Case:
    problem: str
    name: str
    code: str
    outcome: Outcome
    detail: str | None


def read_cases() -> list[Case]:
    cases = []
    for (problem, name, outcome, *detail), code in _sections("lcb_programs.txt"):
        fault = detail[0] if detail else None
        cases.append(Case(problem, name, code, Outcome(outcome), fault))
    return cases


@dataclass(frozen=True)
class TwoVerdicts:
    problem: str
    name: str
    code: str
    lcb: Outcome
    lenient: Outcome


def read_two_verdicts() -> list[TwoVerdicts]:
    return [
        TwoVerdicts(problem, name, code, Outcome(lcb), Outcome(lenient))
        for (problem, name, lcb, lenient), code in _sections("lcb_lenient.txt")
    ]


def _sections(name: str) -> list[tuple[list[str], str]]:
    text = (Path(__file__).parents[1] / "golden" / name).read_text("utf-8")
    parts = [section.partition("\n") for section in text.split("==== ")[1:]]
    return [(header.split(" | "), code.rstrip("\n")) for header, _, code in parts]


def answer_text(code: str) -> str:
    """An answer with reasoning, some prose, and the program in a fence."""
    return f"<think>\n```\nprint('a draft')\n```\n</think>\nSo:\n```python\n{code}\n```\n"


def attempt(number: int, code: str, doc: int) -> Attempt:
    """What is judged of such an answer."""
    key = SampleKey(task="livecodebench", doc=doc, repeat=number)
    return Attempt(key=key, text=without_thinking(answer_text(code), THINK, opened=False))
