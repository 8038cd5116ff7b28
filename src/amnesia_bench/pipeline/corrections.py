"""Correct planned hours by what finished stages took, and expected lengths by their answers.

A step of the plan, such as recall, is corrected by one factor: the median of measured over planned
GPU-hours of its finished stages on GPUs of the planned model. The planned hours of finished answers
are those for their real lengths, so the factor measures the assumed speeds and not the lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from amnesia_bench.costs.work import Answering, Work
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.stage import Stage, whole_of
from amnesia_bench.pipeline.stages import trained_on
from amnesia_bench.reasoning.score import CELLS, read_cells
from amnesia_bench.requests.reasoning import GenerateRequest

_MEAN_LENGTH = "mean_new_tokens"


@dataclass(frozen=True, kw_only=True)
class Correction:
    """The factor on the planned GPU-hours of a step, from `stages` finished stages."""

    factor: float
    stages: int


@dataclass(frozen=True, kw_only=True)
class AnswerLengths:
    """The mean lengths of finished answers, in tokens.

    `exact` is by the id of the finished stage, and of the parts that it merges. `typical` is the
    median over models by the benchmark and the data on which the models were trained. `scored` is
    the number of finished stages that the lengths are from.
    """

    exact: Mapping[str, int]
    typical: Mapping[tuple[str, frozenset[str]], int]
    scored: int

    def applied_to(self, stage: Stage) -> Work:
        """Return the work of a stage with the known mean length of its answers."""
        work = stage.work
        if not isinstance(work, Answering):
            return work
        tokens = self.exact.get(stage.id, self.typical.get(_kind_of_answers(stage)))
        return work if tokens is None else replace(work, mean_new_tokens=tokens)


def correction_of(ratios: Sequence[float]) -> Correction:
    """Return the correction of a step from the ratios of measured to planned hours."""
    return Correction(factor=median(ratios), stages=len(ratios))


def finished_lengths(store: Path, finished: Iterable[Stage]) -> AnswerLengths:
    """Return the lengths of the answers that finished stages have scored."""
    exact: dict[str, int] = {}
    groups: dict[tuple[str, frozenset[str]], list[int]] = {}
    for stage in finished:
        if stage.kind != "scores" or (tokens := _mean_tokens(stage.folder(store))) is None:
            continue
        answers = stage.inputs[0]
        parts = (read for read in answers.inputs if whole_of(read.id) == answers.id)
        exact.update((answered.id, tokens) for answered in (answers, *parts))
        groups.setdefault(_kind_of_answers(answers), []).append(tokens)
    typical = {kind: round(median(lengths)) for kind, lengths in groups.items()}
    return AnswerLengths(exact=exact, typical=typical, scored=sum(map(len, groups.values())))


def _kind_of_answers(stage: Stage) -> tuple[str, frozenset[str]]:
    if not isinstance(stage.request, GenerateRequest):
        return "", frozenset()
    return stage.request.task, trained_on(stage.inputs[0])


def _mean_tokens(folder: Path) -> int | None:
    for path in sorted(folder.glob(f"*/{CELLS}")):
        with suppress(UserError):
            for cell in read_cells(path.parent):
                if cell.metric == _MEAN_LENGTH and cell.value is not None:
                    return max(1, round(cell.value))
    return None
