"""What a reasoning evaluation writes besides generations, verdicts and cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from amnesia_bench.records.evaluation import Interval


class Checker(Enum):
    """How a program is run and judged.

    LCB as LiveCodeBench's published checker does it, oddities included; LENIENT as plain Python
    runs it, with a tolerance for floats.
    """

    LCB = "lcb"
    LENIENT = "lenient"


@dataclass(frozen=True, kw_only=True)
class ReasoningRun:
    """What answers depend on besides the engine: all of it stands in `run.json`.

    `documents_available` counts the problems before a limit, `benchmark_documents` those of the
    benchmark. `chat_template` is the template's sha256, None without one. `think_open` and
    `think_close` are the marks around thinking, `thinking_opened` whether prompts end inside it.
    `window` says which problems where a benchmark has several sets of them, by their number;
    `seconds_per_test` is the CPU time that a program may take, `checker` how it is run and judged.
    All three are None for tasks without.
    """

    task: str
    model: str
    method: str
    checkpoint: str
    data: str
    documents_sha256: str
    documents: int
    documents_available: int
    benchmark_documents: int
    repeats: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    seed: int
    chat_template: str | None
    think_open: str | None
    think_close: str | None
    thinking_opened: bool
    window: int | None
    seconds_per_test: float | None
    checker: str | None


@dataclass(frozen=True, kw_only=True)
class ProblemValues:
    """The value of each metric on one problem: what two methods are compared by."""

    doc: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one method is ahead of another on the same problems.

    `difference` is the mean of first less second. `p_value` is two-sided, of the exact sign-flip
    test; where each problem is right or wrong that is McNemar's exact test.
    """

    metric: str
    first: float
    second: float
    difference: float
    interval: Interval
    p_value: float
    n: int
