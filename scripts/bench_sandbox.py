"""Time that the sandbox adds to running programs: python scripts/bench_sandbox.py."""

from __future__ import annotations

import base64
import json
import os
import pickle
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from amnesia_bench.reasoning.code.livecodebench import score_programs
from amnesia_bench.reasoning.code.problems import load_problems
from amnesia_bench.reasoning.task import Attempt
from amnesia_bench.records.evaluation import Outcome, SampleKey
from amnesia_bench.sandbox import Launcher, Limits, open_launcher

TESTS = 20
PROGRAM = "n = int(input())\nprint(sum(map(int, input().split())))"
NUMBERS = " ".join(map(str, range(20000)))


def best_seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the best time of several calls, since other load can only add to it."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def start_and_end(launcher: Launcher) -> None:
    with launcher.started(Limits(), 10):
        pass


def load_and_end(launcher: Launcher) -> None:
    with launcher.started(Limits(), 10) as session:
        session.ask({"code": PROGRAM, "function": None}, time.monotonic() + 10)


def write_problem(path: Path) -> Path:
    case = {"input": f"20000\n{NUMBERS}\n", "output": f"{19999 * 10000}\n", "testtype": "stdin"}
    private = pickle.dumps(json.dumps([case] * (TESTS - 1)))
    row = {
        "question_id": "sum",
        "question_content": "Sum the numbers.",
        "starter_code": "",
        "contest_date": "2024-09-01T00:00:00",
        "metadata": "{}",
        "public_test_cases": json.dumps([case]),
        "private_test_cases": base64.b64encode(zlib.compress(private)).decode(),
    }
    path.write_text(json.dumps(row) + "\n")
    return path


def programs_per_second(launcher: Launcher, path: Path, workers: int) -> float:
    problems = load_problems(369, path=path) * 4
    answers = [
        Attempt(
            key=SampleKey(task="livecodebench", doc=doc, repeat=repeat),
            text=f"```python\n{PROGRAM}\n```",
        )
        for doc in range(len(problems))
        for repeat in range(4)
    ]

    def run() -> None:
        verdicts = score_programs(problems, answers, launcher, workers=workers)
        if any(verdict.outcome is not Outcome.CORRECT for verdict in verdicts):
            raise RuntimeError("a right program was not graded right")

    return len(answers) / best_seconds(run, 3)


def main() -> None:
    launchers = {
        "bubblewrap": open_launcher(),
        "none (--unsafe-no-sandbox)": open_launcher(unsafe_no_sandbox=True),
    }
    cores = len(os.sched_getaffinity(0))
    print(
        "## Code execution\n\nEach time is the best of several. *Start*: from starting a sandbox "
        "until its driver has set its\nlimits and is killed again. *Load* adds the star imports of "
        "LiveCodeBench's checker. *Programs*: a\nprogram that sums 20,000 numbers and passes "
        f"{TESTS} tests.\n\n"
        f"| sandbox | start ms | start and load ms | programs/s, 1 worker | {cores} workers |\n"
        "|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = write_problem(Path(folder) / "problem.jsonl")
        for name, launcher in launchers.items():
            start = best_seconds(lambda: start_and_end(launcher), 30)  # noqa: B023
            load = best_seconds(lambda: load_and_end(launcher), 30)  # noqa: B023
            rates = [programs_per_second(launcher, path, workers) for workers in (1, cores)]
            print(
                f"| {name} | {1e3 * start:.0f} | {1e3 * load:.0f} | {rates[0]:.1f} | "
                f"{rates[1]:.1f} |"
            )


if __name__ == "__main__":
    main()
