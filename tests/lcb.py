"""A dozen problems in LiveCodeBench's schema, and programs with the verdicts its checker gives.

The verdicts were also had from the checker itself (lcb_runner/evaluation/testing_util.py at
28fef95, run on these very programs); where it disagrees with common sense, a comment says so.
"""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia_bench.records.evaluation import FinishReason, Generation, Outcome, SampleKey

RIGHT, WRONG, LATE = Outcome.CORRECT, Outcome.WRONG, Outcome.TIME_LIMIT


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
    name: str
    problem: str
    code: str
    outcome: Outcome
    detail: str | None = None


DOUBLE = "print(2 * int(input()))"
SUM_STDIN = "import sys\nprint(sum(map(int, sys.stdin.read().split()[1:])))"


def solution(body: str, name: str = "add", parameters: str = "a, b") -> str:
    return f"class Solution:\n    def {name}(self, {parameters}):\n        {body}\n"


STDIN_CASES = [
    Case("right", "double", DOUBLE, RIGHT),
    Case("wrong", "double", "print(int(input()))", WRONG, "test 1 of 3: wrong answer: line 1"),
    Case(
        "wrong from the second test on",
        "double",
        "print(6)",
        WRONG,
        "test 2 of 3: wrong answer: line 1",
    ),
    Case(
        "spaces and empty lines around",
        "double",
        "print(); print('  ', 2*int(input()), '\\n')",
        RIGHT,
    ),
    Case(
        "empty line inside",
        "grid",
        "n=int(input())\nprint('1 2\\n\\n2 4')",
        WRONG,
        "test 1 of 2: wrong answer: 3 lines, expected 2",
    ),
    Case("other float format", "half", "print('%.5e' % (int(input()) / 2))", RIGHT),
    Case(
        "nearly the same float",
        "half",
        "print(int(input()) / 2 + 1e-12)",
        WRONG,
        "test 1 of 2: wrong answer: line 1",
    ),
    Case("not a number", "half", "print('sNaN')", WRONG, "test 1 of 2: wrong answer: line 1"),
    Case("unicode", "echo", "print(input())", RIGHT),
    Case("surrogates", "echo", "print('\\ud800')", WRONG, "test 1 of 2: wrong answer: line 1"),
    Case(
        "spaces between numbers",
        "grid",
        "n=int(input())\nfor i in range(1,n+1): print('   '.join(str(i*j) for j in range(1,n+1)))",
        RIGHT,
    ),
    Case("reads all", "sum of lines", SUM_STDIN, RIGHT),
    Case(
        "reads lines",
        "sum of lines",
        "import sys\nprint(sum(map(int, sys.stdin.readlines()[1:-1])))",
        RIGHT,
    ),
    Case(
        "reads line by line",
        "sum of lines",
        "import sys\nn=int(sys.stdin.readline())\nprint(sum(int(sys.stdin.readline()) for _ in range(n)))",
        RIGHT,
    ),
    Case(
        "reads the buffer",
        "sum of lines",
        "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split()[1:])))",
        RIGHT,
    ),
    Case(
        "reads to the end",
        "sum of lines",
        "import sys\nlines = []\nwhile line := sys.stdin.readline(): lines.append(line)\nprint(sum(map(int, lines[1:])))",
        RIGHT,
    ),
    Case(
        "reads twice",
        "sum of lines",
        "import sys\ninput()\nprint(sum(map(int, sys.stdin.read().split())) - int(sys.stdin.readlines()[0]))",
        RIGHT,
    ),
    # The checker's mocks: buffer.readline never moves on, and stdin has no iterator.
    Case(
        "reads the buffer by line",
        "sum of lines",
        "import sys\nf=sys.stdin.buffer.readline\nn=int(f())\nprint(sum(int(f()) for _ in range(n)))",
        WRONG,
        "test 1 of 2: wrong answer: line 1",
    ),
    Case(
        "iterates over stdin",
        "sum of lines",
        "import sys\nprint(sum(int(x) for x in sys.stdin))",
        WRONG,
        "test 1 of 2: runtime error: TypeError",
    ),
    Case("empty line in the input", "blank line", "print(input(), input() + input())", RIGHT),
    Case(
        "input runs out",
        "sum of lines",
        "while True: x = input()",
        WRONG,
        "test 1 of 2: runtime error: EOFError",
    ),
    Case("large input", "large sum", SUM_STDIN, RIGHT),
    Case(
        "main block",
        "double",
        f"def main():\n    {DOUBLE}\nif __name__ == '__main__':\n    main()",
        RIGHT,
    ),
    # The body of a program becomes a function: `global` then names what is not there.
    Case(
        "global",
        "double",
        "total = 0\ndef f():\n    global total\n    total += 1\nf()\nprint(2*int(input()))",
        WRONG,
        "test 1 of 3: runtime error: NameError",
    ),
    Case("exit after the answer", "double", f"{DOUBLE}\nimport sys\nsys.exit(0)", RIGHT),
    Case(
        "exit after half of the answer",
        "grid",
        "print('1 2')\nexit()",
        WRONG,
        "test 1 of 2: wrong answer: 1 lines, expected 2",
    ),
    Case("exit with an error", "double", f"{DOUBLE}\nimport sys\nsys.exit(1)", RIGHT),
    Case("quit", "double", f"{DOUBLE}\nquit()", WRONG, "test 1 of 3: runtime error: TypeError"),
    Case(
        "crash after the answer",
        "double",
        f"{DOUBLE}\n1/0",
        WRONG,
        "test 1 of 3: runtime error: ZeroDivisionError",
    ),
    Case("syntax error", "double", "print(", WRONG, "loading: runtime error: SyntaxError"),
    Case(
        "only a comment", "double", "# no idea", WRONG, "loading: runtime error: IndentationError"
    ),
    Case(
        "deep recursion",
        "depth",
        "def f(n): return n and 1 + f(n - 1)\nprint(f(int(input())))",
        RIGHT,
    ),
    Case(
        "endless recursion",
        "double",
        "def f(): return f()\nf()",
        WRONG,
        "test 1 of 3: runtime error: RecursionError",
    ),
    Case("endless loop", "double", "while True: pass", LATE, "test 1 of 3: time limit"),
    Case(
        "endless loop that holds on",
        "double",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        LATE,
        "test 1 of 3: time limit",
    ),
    Case(
        "too slow on the last test",
        "double",
        f"n=input()\nif n == '-1':\n    import time\n    time.sleep(60)\nprint(2*int(n))",
        LATE,
        "test 3 of 3: time limit",
    ),
    Case("no output", "double", "pass", WRONG, "test 1 of 3: wrong answer: line 1"),
    Case(
        "a class named Solution",
        "double",
        f"class Solution:\n    pass\n{DOUBLE}",
        WRONG,
        "loading: runtime error: AttributeError",
    ),
    Case(
        "imports resource",
        "double",
        f"import resource\n{DOUBLE}",
        WRONG,
        "loading: runtime error: ModuleNotFoundError",
    ),
    Case(
        "threads",
        "double",
        f"import threading\nthreading.stack_size(1 << 26)\ndef main():\n    {DOUBLE}\nt = threading.Thread(target=main)\nt.start()\nt.join()",
        RIGHT,
    ),
    Case(
        "star imports",
        "double",
        "print(reduce(add, [int(input())] * 2) if gcd(4, 6) == 2 else deque())",
        RIGHT,
    ),
]

CALL_CASES = [
    Case("right", "add", solution("return a + b"), RIGHT),
    Case("wrong", "add", solution("return a - b"), WRONG, "test 1 of 2: wrong answer"),
    Case("float for an integer", "add", solution("return float(a + b)"), RIGHT),
    Case(
        "text for an integer",
        "add",
        solution("return str(a + b)"),
        WRONG,
        "test 1 of 2: wrong answer",
    ),
    Case("nothing", "add", solution("pass"), WRONG, "test 1 of 2: wrong answer"),
    Case("no class", "add", "def add(a, b):\n    return a + b", RIGHT),
    Case(
        "class under another name",
        "pairs",
        solution("return sorted(x)", "pairs", "x").replace("Solution", "Answer"),
        WRONG,
        "loading: runtime error: AttributeError",
    ),
    Case(
        "function under another name",
        "add",
        solution("return a + b", "plus"),
        WRONG,
        "loading: runtime error: AttributeError",
    ),
    Case(
        "crash",
        "add",
        solution("return a // 0"),
        WRONG,
        "test 1 of 2: runtime error: ZeroDivisionError",
    ),
    Case("exit", "add", solution("exit()"), WRONG, "test 1 of 2: runtime error: SystemExit"),
    Case("endless loop", "add", solution("while True: pass"), LATE, "test 1 of 2: time limit"),
    Case("endless loop at the top", "add", "while True: pass", LATE, "loading: time limit"),
    Case(
        "wrong number of parameters",
        "add",
        solution("return a", parameters="a"),
        WRONG,
        "test 1 of 2: runtime error: TypeError",
    ),
    Case(
        "future import",
        "add",
        "from __future__ import annotations\n" + solution("return a + b"),
        WRONG,
        "loading: runtime error: SyntaxError",
    ),
    Case(
        "typing without import",
        "add",
        solution("x: List[int] = [a, b]\n        return sum(x)"),
        RIGHT,
    ),
    Case("list", "pairs", solution("return sorted(x)", "pairs", "x"), RIGHT),
    Case("tuple for a list", "pairs", solution("return tuple(sorted(x))", "pairs", "x"), RIGHT),
    Case(
        "set for a list",
        "pairs",
        solution("return set(x)", "pairs", "x"),
        WRONG,
        "test 1 of 2: wrong answer",
    ),
    Case(
        "tuples inside a list",
        "nested",
        solution("return [(i, i + 1) for i in range(x)]", "nested", "x"),
        WRONG,
        "test 1 of 1: wrong answer",
    ),
    Case(
        "lists inside a tuple",
        "nested",
        solution("return tuple([i, i + 1] for i in range(x))", "nested", "x"),
        RIGHT,
    ),
    Case(
        "fraction",
        "halves",
        solution("from fractions import Fraction\n        return Fraction(x, 2)", "halves", "x"),
        RIGHT,
    ),
    Case(
        "decimal",
        "halves",
        solution("from decimal import Decimal\n        return Decimal(x) / 2", "halves", "x"),
        RIGHT,
    ),
    Case(
        "nearly the same float",
        "halves",
        solution("return x / 2 + 1e-12", "halves", "x"),
        WRONG,
        "test 1 of 2: wrong answer",
    ),
    Case(
        "infinity",
        "halves",
        solution("return inf", "halves", "x"),
        WRONG,
        "test 1 of 2: wrong answer",
    ),
    Case("counter for a dict", "words", solution("return Counter(x)", "words", "x"), RIGHT),
    Case(
        "dict with other keys",
        "words",
        solution("return dict(enumerate(x))", "words", "x"),
        WRONG,
        "test 1 of 1: wrong answer",
    ),
    Case("large integers", "power", solution("return 10 ** x", "power", "x"), RIGHT),
    Case(
        "large integers, wrong",
        "power",
        solution("return 10 ** x + (x > 9)", "power", "x"),
        WRONG,
        "test 2 of 2: wrong answer",
    ),
    Case(
        "numpy integer", "add", "import numpy as np\n" + solution("return np.int64(a) + b"), RIGHT
    ),
    # State stays from test to test, as in one process there.
    Case(
        "state",
        "add",
        "class Solution:\n    calls = 0\n    def add(self, a, b):\n        self.calls += 1\n        return a + b if self.calls == 1 else None",
        WRONG,
        "test 2 of 2: wrong answer",
    ),
]


def generation(number: int, case_code: str, doc: int) -> Generation:
    """An answer with reasoning, some prose, and the program in a fence."""
    return Generation(
        key=SampleKey(task="livecodebench", doc=doc, repeat=number),
        text=f"<think>\n```python\nprint('a draft')\n```\n</think>\nSo:\n```python\n{case_code}\n```\n",
        tokens=(),
        prompt_tokens=1,
        finish_reason=FinishReason.EOS,
        seed=None,
    )
