"""The output of a reasoning evaluation besides generations, verdicts and cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from amnesia_bench.records.evaluation import Interval


class Checker(Enum):
    """How a program is run and judged.

    LCB: like the published checker of LiveCodeBench, including its quirks. LENIENT: like plain
    Python, with a tolerance for floats.
    """

    LCB = "lcb"
    LENIENT = "lenient"


@dataclass(frozen=True, kw_only=True)
class ReasoningRun:
    """The content of `run.json`: all settings that answers depend on, besides the engine.

    `documents_available` counts the problems before a limit is applied, `benchmark_documents` those
    of the benchmark. `chat_template` is the sha256 of the template, None without one. `think_open`
    and `think_close` are the delimiters of thinking; `thinking_opened`: prompts end inside it.
    `window` is the number of the problem set, in a benchmark with several sets. `seconds_per_test`
    is the CPU time limit of a program, `checker` the way it is run and judged. These three are None
    for tasks to which they do not apply.
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
    """The value of each metric on one problem, for paired comparisons of methods."""

    doc: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of two methods in one metric, on the same problems.

    `difference` is the mean of first minus second. `p_value` is that of the two-sided exact
    sign-flip test; for binary values this is McNemar's exact test.
    """

    metric: str
    first: float
    second: float
    difference: float
    interval: Interval
    p_value: float
    n: int
