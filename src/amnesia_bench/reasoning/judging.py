"""What scorers take and give: the border between one task's notion of right and all statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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
