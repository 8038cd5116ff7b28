"""The output of a reasoning evaluation, except generations, verdicts and cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Checker(Enum):
    """How a program is run and judged.

    `LCB` behaves like the published checker of LiveCodeBench, including its quirks. `LENIENT` runs
    a program like plain Python, and compares floats with a tolerance.
    """

    LCB = "lcb"
    LENIENT = "lenient"


@dataclass(frozen=True, kw_only=True)
class ReasoningRun:
    """The content of `run.json`: all settings that the answers depend on, except the engine's.

    `documents` is the number of problems of the run, `documents_available` their number before a
    limit is applied, and `benchmark_documents` the size of the benchmark. `chat_template` is the
    sha256 of the chat template; None without one. `think_open` and `think_close` are the tags that
    delimit a thinking block, and `thinking_opened` is true if prompts end inside such a block.

    The last three fields are None for tasks to which they do not apply. `window` identifies the
    window of the benchmark by its number of problems. `seconds_per_test` is the CPU time limit of a
    program. `checker` is the value of the `Checker` that runs and judges programs.
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
    """The value of each metric on the problem `doc`, for paired comparisons of methods."""

    doc: int
    values: Mapping[str, float]
