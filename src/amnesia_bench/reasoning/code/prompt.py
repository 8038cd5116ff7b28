"""What a model is asked, and where in its answer the program is."""

from __future__ import annotations

from amnesia_bench.reasoning.code.problems import CodeProblem

# LiveCodeBench's prompt for reasoning models (lcb_runner/prompts/code_generation.py at 28fef95).
_TASK = (
    "You will be given a question (problem specification) and will generate a correct Python "
    "program that matches the specification and passes all tests."
)
_WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose "
    "your code within delimiters."
)
_WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly "
    "test on the sample inputs). Enclose your code within delimiters as follows."
)
_FENCE = "```"


def prompt(problem: CodeProblem) -> str:
    """Return the text of the one user message; there is no system message."""
    sentence = _WITH_STARTER if problem.starter_code else _WITHOUT_STARTER
    code = problem.starter_code or "# YOUR CODE HERE"
    return (
        f"{_TASK}\n\nQuestion: {problem.question}\n\n"
        f"{sentence}\n{_FENCE}python\n{code}\n{_FENCE}\n\n"
    )


def extract(text: str) -> str | None:
    """Return the program in what follows the thinking; None if there is none.

    It is what lies between the last two lines with a fence.
    """
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if _FENCE in line]
    if len(fences) < 2:
        return None
    return "\n".join(lines[fences[-2] + 1 : fences[-1]])
