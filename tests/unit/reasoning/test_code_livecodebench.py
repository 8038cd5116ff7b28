from __future__ import annotations

from pathlib import Path

import pytest

from amnesia_bench.reasoning.code.livecodebench import extract, prompt
from amnesia_bench.reasoning.code.problems import load_problems
from tests.support.lcb import ROWS, write_rows

BLOCK = "```python\nprint(1)\n```"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (BLOCK, "print(1)"),
        (f"first\n```\nprint(0)\n```\nthen\n{BLOCK}\nDone.", "print(1)"),
        ("```python\na\n\n  b\n```", "a\n\n  b"),
        ("```\n```", ""),
        # An odd number of fences: the official rule takes what is between the last two.
        (f"{BLOCK}\nand\n```python\nprint(3)", "and"),
        (f"    {BLOCK.replace(chr(10), chr(10) + '    ')}", "    print(1)"),
    ],
)
def test_program_is_what_lies_between_the_last_two_fences(text: str, program: str) -> None:
    assert extract(text) == program


@pytest.mark.parametrize(
    "text",
    [
        "",
        "print(1)",
        "```python\nprint(1)",
        "Use `print`.",
    ],
)
def test_no_finished_block_is_no_answer(text: str) -> None:
    assert extract(text) is None


def test_prompt_is_livecodebenchs_for_reasoning_models(tmp_path: Path) -> None:
    problems = load_problems(369, path=write_rows(tmp_path / "p", ROWS))
    by_name = {problem.name: prompt(problem) for problem in problems}
    head = (
        "You will be given a question (problem specification) and will generate a correct Python "
        "program that matches the specification and passes all tests.\n\nQuestion: Solve "
    )
    assert by_name["double"] == (
        f"{head}double.\n\nRead the inputs from stdin solve the problem and write the answer to "
        "stdout (do not directly test on the sample inputs). Enclose your code within delimiters "
        "as follows.\n```python\n# YOUR CODE HERE\n```\n\n"
    )
    assert by_name["add"] == (
        f"{head}add.\n\nYou will use the following starter code to write the solution to the "
        "problem and enclose your code within delimiters.\n```python\nclass Solution:\n"
        "    def add(self, x):\n        \n```\n\n"
    )
