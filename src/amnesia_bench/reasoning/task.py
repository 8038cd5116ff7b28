"""Types that define a reasoning task: its problems, its prompts, and its scorers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from amnesia_bench.config.eval_schema import EvalConfig
from amnesia_bench.hub.fetched import HubFiles
from amnesia_bench.records.evaluation import SampleKey, Verdict

# One problem of a benchmark: its field values by field name.
Row = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One generated response to one problem.

    `text` is the part after the thinking; None if the thinking never ended.
    """

    key: SampleKey
    text: str | None


@dataclass(frozen=True, kw_only=True)
class ScoringResult:
    """A verdict and a vote per attempt, in the order of the attempts.

    A vote is the index of an answer's equivalence class among the answers to the same problem;
    classes are numbered in the order of first appearance. The vote of an attempt without an answer
    is None. `votes` is None for a task whose answers are not compared with each other.
    """

    verdicts: tuple[Verdict, ...]
    votes: tuple[int | None, ...] | None


class Scorer(Protocol):
    """Judges the attempts of one task."""

    def __call__(self, rows: Sequence[Row], attempts: Sequence[Attempt]) -> ScoringResult:
        """Judge every attempt; `attempt.key.doc` is the index of its problem in `rows`.

        Attempts must be sorted by key, so that attempts at the same problem are adjacent.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class BenchmarkSource:
    """The data set on the hub that contains a task's problems.

    `revision` is a commit of the data set. `fields` maps each required field to its type; a local
    file must have these fields too. `rows` is the number of problems.
    """

    hub_id: str
    config: str | None
    split: str
    revision: str
    fields: Mapping[str, type]
    rows: int


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """Problems in the order of the benchmark.

    `origin` names their source. `sha256` is the hash of the required fields only, so it depends
    neither on the file format (Parquet or JSON lines) nor on other columns. `available` is the
    number of problems before a limit was applied.
    """

    rows: tuple[Row, ...]
    origin: str
    sha256: str
    available: int


class Loader(Protocol):
    """Reads the problems of one subset (window) of a benchmark that has several."""

    def __call__(self, data: Path | None, limit: int | None, window: int) -> ProblemSet:
        """Read the problems; see `reasoning.documents.load_documents`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReasoningTask:
    """A benchmark: its problems, its prompts, and its scorers.

    `configs/eval/<name>.yaml` sets how answers are generated (repeats, sampling, chat template);
    `records.ids` lists the metrics that summarise the verdicts.

    Attributes:
        name: the name of the task and of its config file.
        source: the data set that contains the problems.
        message: returns the user message for a problem.
        scorers: the scorers by name, as listed in `records.ids`.
        config: the schema class of `configs/eval/<name>.yaml`.
        load: reads the problems of a benchmark that is not a plain table; if None, the fields
            `source.fields` are read from a table.
        files: for a benchmark with `load`, returns the files on the hub of a subset (window).
    """

    name: str
    source: BenchmarkSource
    message: Callable[[Row], str]
    scorers: Mapping[str, Scorer]
    config: type[EvalConfig] = EvalConfig
    load: Loader | None = None
    files: Callable[[int], HubFiles] | None = None
