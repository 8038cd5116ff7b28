"""Scoring of 8,000 answers to 500 mathematical problems."""

import os
import resource
import time

import numpy as np

from amnesia_bench.reasoning.math.pool import ANSWER_SECONDS
from amnesia_bench.reasoning.math.scorer import MathScorer
from amnesia_bench.reasoning.task import Attempt
from amnesia_bench.records.evaluation import Outcome, SampleKey

PROBLEMS, REPEATS = 500, 16
TEXT = "Let us consider the cases $x_1, \\ldots, x_n$ in turn; \\frac{1}{n} of them remain. " * 100
HOSTILE = (
    "10^{10^{10^{10}}}",
    "7^{7^{7^{7^{7}}}}",
    "9^{9^{9^{9}}} + 1",
    "\\sqrt[3]{5^{5^{5^{5^{5}}}}}",
    "\\frac{1}{11^{11^{11^{11}}}}",
    "x^2 + 12^{12^{12^{12}}}",
    "\\sqrt{6^{6^{6^{6^{6}}}}}",
    "5^{5^{5^{5^{5}}}}",
)


def forms(kind: int, n: int) -> tuple[str, ...]:
    """Return a gold answer, then other ways to write it, as MATH's answers go."""
    if kind == 0:
        return str(n), f"{n:,}", f"{n}.0", f"{n} \\text{{ cm}}", f"x = {n}"
    if kind == 1:
        return f"\\frac{{{n}}}{{{2 * n + 1}}}", f"{n}/{2 * n + 1}", f"\\dfrac{{{n}}}{{{2 * n + 1}}}"
    if kind == 2:
        return f"{n}\\sqrt{{2}}", f"\\sqrt{{{2 * n * n}}}", f"\\sqrt2 \\cdot {n}"
    if kind == 3:
        return f"(-\\infty, {n}]", f"\\left(-\\infty, {n}\\right]", f"x \\in (-\\infty,{n}]"
    if kind == 4:
        return f"x^2 + {2 * n}x + {n * n}", f"(x + {n})^2", f"x^2+{n * n}+{2 * n}x"
    if kind == 5:
        return f"{n}, {n + 1}", f"{n + 1}, {n}", f"\\{{{n}, {n + 1}\\}}"
    return (
        f"\\left( {n}, \\frac{{\\pi}}{{2}} \\right)",
        f"({n}, \\pi/2)",
        f"({n},\\frac{{\\pi}}{{2}})",
    )


def cpu_seconds() -> float:
    """Return what this process and those that it has waited for have used."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(who)[:2]) for who in whose)


def main() -> None:
    generator = np.random.default_rng(0)
    golds, attempts = [], []
    hostile_at = dict(zip(range(0, PROBLEMS * REPEATS, 1000), HOSTILE, strict=True))
    for doc in range(PROBLEMS):
        n = int(generator.integers(2, 5000))
        right = forms(doc % 7, n)
        golds.append({"gold": right[0]})
        for repeat in range(REPEATS):
            draw = generator.random()
            # Half right in one form or another, a tenth without an answer, others wrong: of few
            # wrong answers to a problem, most come more than once.
            wrong = forms(doc % 7, n + int(generator.integers(1, 7)))
            chosen = right if draw < 0.5 else wrong
            answer = hostile_at.get(len(attempts), str(generator.choice(chosen)))
            boxed = (
                f"{TEXT} So it is \\boxed{{{answer}}}." if draw < 0.9 or answer in HOSTILE else TEXT
            )
            key = SampleKey(task="bench", doc=doc, repeat=repeat)
            attempts.append(Attempt(key=key, text=boxed))
    started, used = time.perf_counter(), cpu_seconds()
    judged = MathScorer(gold=lambda row: str(row["gold"]))(golds, attempts)
    seconds, used = time.perf_counter() - started, cpu_seconds() - used
    count = {kind: sum(v.outcome is kind for v in judged.verdicts) for kind in Outcome}
    listed = sum(v.detail is not None for v in judged.verdicts)
    print("## Scoring\n")
    print(
        "Scoring of 8,000 answers to 500 mathematical problems; eight answers are built to stall a "
        "grader.\n"
        "The time includes verdicts and majority votes, on "
        f"{len(os.sched_getaffinity(0))} cores, with at most {ANSWER_SECONDS:g} s of CPU time per\n"
        "comparison. *None*: no answer was found. *Listed*: verdicts that carry an explanation.\n"
    )
    print("| answers | right | wrong | none | out of time | listed | s | CPU s | target |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {len(attempts):,} | {count[Outcome.CORRECT]:,} | {count[Outcome.WRONG]:,} "
        f"| {count[Outcome.NO_ANSWER]:,} | {count[Outcome.TIME_LIMIT]} | {listed} "
        f"| {seconds:.1f} | {used:.1f} | below 60 s |"
    )


if __name__ == "__main__":
    main()
