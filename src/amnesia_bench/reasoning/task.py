"""The parts of a reasoning task: its problems, their prompts, and how answers are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from amnesia_bench.config.eval_schema import EvalConfig
from amnesia_bench.records.evaluation import SampleKey, Verdict

# One problem of a benchmark, its fields by name.
Row = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One answer to one problem; `text` follows the thinking, None if the thinking never ended."""

    key: SampleKey
    text: str | None


@dataclass(frozen=True, kw_only=True)
class ScoringResult:
    """A verdict and a vote per attempt, in the order of the attempts.

    A vote is the class of equal answers that an answer belongs to. Classes are numbered per problem
    in the order of first appearance. An attempt without an answer has the vote None, and `votes` is
    None for a task whose answers are not compared with each other.
    """

    verdicts: tuple[Verdict, ...]
    votes: tuple[int | None, ...] | None


class Scorer(Protocol):
    """Judges the attempts of one task."""

    def __call__(self, rows: Sequence[Row], attempts: Sequence[Attempt]) -> ScoringResult:
        """Judge every attempt; `attempt.key.doc` is the position of its problem in `rows`.

        Attempts are sorted by key, so those of one problem follow each other.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class BenchmarkSource:
    """Where a task's problems come from.

    `revision` is a commit of the data set on the hub. `fields` lists the fields that are read, with
    their types; a local file must have them too. `rows` is the number of problems.
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

    `origin` names their source. `sha256` hashes the fields that are read, so a data set has the
    same hash as Parquet, as JSON lines, or with further columns. `available` is the number of
    problems before a limit was applied.
    """

    rows: tuple[Row, ...]
    origin: str
    sha256: str
    available: int


class Loader(Protocol):
    """Reads the problems of one window of a benchmark that has several."""

    def __call__(self, data: Path | None, limit: int | None, window: int) -> ProblemSet:
        """Read the problems; see `reasoning.documents.load_documents`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReasoningTask:
    """A benchmark: its problems, their prompts, and how answers are judged.

    `configs/eval/<name>.yaml` sets how answers are sampled (repeats, sampling, template);
    `records.ids` lists the metrics that summarise them.

    Attributes:
        message: returns the user message for a problem.
        scorers: the scorers by name, as listed in `records.ids`.
        config: the schema of `configs/eval/<name>.yaml`.
        load: reads the problems if they are not a plain table; None reads `source.fields`.
    """

    name: str
    source: BenchmarkSource
    message: Callable[[Row], str]
    scorers: Mapping[str, Scorer]
    config: type[EvalConfig] = EvalConfig
    load: Loader | None = None
