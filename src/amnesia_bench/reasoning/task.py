"""What a reasoning task is: its problems, how they are asked, and how answers are judged."""

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
    """One answer to one problem. `text` is what follows the thinking, None if that never ended."""

    key: SampleKey
    text: str | None


@dataclass(frozen=True, kw_only=True)
class ScoringResult:
    """A verdict per attempt, in their order, and how the answers vote.

    `votes` names the class of equal answers that an answer belongs to, numbered per problem in
    the order in which they were first seen; None for an attempt without an answer. It is None as
    a whole for a task whose answers are not compared with each other.
    """

    verdicts: tuple[Verdict, ...]
    votes: tuple[int | None, ...] | None


class Scorer(Protocol):
    """Judges the attempts of one task."""

    def __call__(self, rows: Sequence[Row], attempts: Sequence[Attempt]) -> ScoringResult:
        """Judge every attempt; `attempt.key.doc` is the position of its problem in `rows`.

        Attempts come in the order of their keys, so those at one problem together.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class BenchmarkSource:
    """Where a task's problems come from.

    `revision` is a commit of the data set on the hub. `fields` are those that are read, with
    their types; a local file must have them too. `rows` is how many problems the benchmark has.
    """

    hub_id: str
    config: str | None
    split: str
    revision: str
    fields: Mapping[str, type]
    rows: int


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """Problems in their order.

    `origin` is where they came from, `sha256` the hash of the fields that are read: one data set
    has one hash, as parquet, as JSON lines or with other columns beside these. `available` counts
    the problems before a limit was applied.
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
    """A benchmark: its problems, how they are asked, and how answers are judged.

    How answers are drawn (repeats, sampling, template) is config: `configs/eval/<name>.yaml`;
    which metrics sum them up is in `records.ids`.

    Attributes:
        message: the user's message for a problem.
        scorers: by name, as `records.ids` lists them.
        config: what `configs/eval/<name>.yaml` must be.
        load: reads the problems where they are no plain table; None reads `source.fields`.
    """

    name: str
    source: BenchmarkSource
    message: Callable[[Row], str]
    scorers: Mapping[str, Scorer]
    config: type[EvalConfig] = EvalConfig
    load: Loader | None = None
