"""Pair the samples of two evaluations, and name those that only one of them contains."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from amnesia_bench.comparison.score_log import MetricKey, ScoreLog, ScoreSeries
from amnesia_bench.errors import UserError
from amnesia_bench.printable import counted

_NAMED = 5
_COMMON_ONLY = "To compare only what both evaluations contain: --common-only"


@dataclass(frozen=True, kw_only=True)
class MetricPairs:
    """The scores of both evaluations in one metric, in the same order of samples."""

    key: MetricKey
    higher_is_better: bool
    a: tuple[float, ...]
    b: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PairedLogs:
    """The paired scores, what was not paired, and warnings about what was."""

    pairs: tuple[MetricPairs, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    warnings: tuple[str, ...]


def pair_logs(
    a: ScoreLog, b: ScoreLog, *, common_only: bool, different_prompts: bool
) -> PairedLogs:
    """Pair the samples of two evaluations by the identity of their content.

    Args:
        a: the first evaluation.
        b: the second evaluation.
        common_only: leave out what only one of them contains, instead of refusing it.
        different_prompts: pair samples that were asked with different prompts.

    Raises:
        UserError: the evaluations are of different tools, tasks or task versions, a sample was
            asked with different prompts, or something is not in both evaluations.
    """
    common = _common_metrics(a, b)
    left_out = [
        [f"{key}: not in {other_name}" for key in log.series if key not in other.series]
        for log, other, other_name in ((a, b, "B"), (b, a, "A"))
    ]
    pairs, warnings = [], _version_warnings(a, b)
    for key in common:
        one, other = a.series[key], b.series[key]
        shared = _shared_samples(key, one, other)
        left_out[0] += _unpaired(key, one, other, "B")
        left_out[1] += _unpaired(key, other, one, "A")
        warnings += _check_prompts(key, shared, a, b, accepted=different_prompts)
        if any(len(one.scores[s]) != len(other.scores[s]) for s in shared):
            warnings.append(f"{key}: A and B have different numbers of answers per sample")
        pairs.append(
            MetricPairs(
                key=key,
                # A log without results says nothing about the direction, and true is assumed.
                higher_is_better=one.higher_is_better and other.higher_is_better,
                a=_means(one.scores, shared),
                b=_means(other.scores, shared),
            )
        )
    if any(left_out) and not common_only:
        named = zip("AB", left_out, strict=True)
        lines = [f"  only in {name}: {line}" for name, lines in named for line in lines]
        raise UserError("\n".join(["A and B do not contain the same:", *lines]), hint=_COMMON_ONLY)
    return PairedLogs(
        pairs=tuple(pairs),
        only_in_a=tuple(left_out[0]),
        only_in_b=tuple(left_out[1]),
        warnings=tuple(warnings),
    )


def _common_metrics(a: ScoreLog, b: ScoreLog) -> list[MetricKey]:
    """Return the metrics that both evaluations contain, of the same versions of their tasks."""
    if a.format != b.format:
        raise UserError(
            f"A is a log of {a.format} and B of {b.format}: their samples have no pairs",
            hint="Evaluate both models with the same tool.",
        )
    common = [key for key in a.series if key in b.series]
    if not common:
        metrics = (_listed(sorted(map(str, log.series))) for log in (a, b))
        raise UserError(
            "A and B have no metric of a task in common\n  A: {}\n  B: {}".format(*metrics),
            hint="Evaluate both models on the same tasks.",
        )
    for task in dict.fromkeys(key.task for key in common):
        _check_versions(task, a, b)
    return common


def _shared_samples(key: MetricKey, one: ScoreSeries, other: ScoreSeries) -> list[str]:
    shared = sorted(one.scores.keys() & other.scores.keys())
    if not shared:
        raise UserError(
            f"{key}: none of the {counted(len(one.scores), 'sample')} of A is among the "
            f"{len(other.scores):,} of B",
            hint="Samples are paired by their content: evaluate both models on the same data "
            "and version of the task.",
        )
    return shared


def _means(scores: Mapping[str, tuple[float, ...]], samples: Sequence[str]) -> tuple[float, ...]:
    return tuple(sum(scores[sample]) / len(scores[sample]) for sample in samples)


def _check_versions(task: str, a: ScoreLog, b: ScoreLog) -> None:
    versions = a.versions.get(task), b.versions.get(task)
    if versions[0] != versions[1] and "unknown" not in versions:
        raise UserError(
            f"{task}: A has version {versions[0]} of the task and B version {versions[1]}, which "
            "may ask or score differently",
            hint="Evaluate both models with the same version.",
        )


def _unpaired(
    key: MetricKey, series: ScoreSeries, against: ScoreSeries, other_name: str
) -> list[str]:
    missing = [series.names[sample] for sample in series.scores if sample not in against.scores]
    if not missing:
        return []
    return [f"{key}: {len(missing):,} of {len(series.scores):,} samples are not in {other_name}: "
            f"{_listed(missing)}"]  # fmt: skip


def _check_prompts(
    key: MetricKey, shared: Sequence[str], a: ScoreLog, b: ScoreLog, *, accepted: bool
) -> list[str]:
    one, other = a.series[key], b.series[key]
    changed = [one.names[s] for s in shared if one.prompts[s] != other.prompts[s]]
    if not changed:
        return []
    settings = a.settings.get(key.task, {}), b.settings.get(key.task, {})
    reasons = [
        f"{name} is {settings[0].get(name)} in A and {settings[1].get(name)} in B"
        for name in settings[0].keys() | settings[1].keys()
        if settings[0].get(name) != settings[1].get(name)
    ]
    what = (
        f"{key}: A and B asked {len(changed):,} of {len(shared):,} samples with different prompts "
        f"or correct answers: {_listed(changed)}"
    )
    if reasons:
        what += f" ({'; '.join(sorted(reasons))})"
    if accepted:
        return [f"{what}: the difference includes the effect of the prompts"]
    raise UserError(
        what,
        hint="Evaluate both models with the same prompts, or accept that the difference includes "
        "the effect of the prompts: --different-prompts",
    )


def _version_warnings(a: ScoreLog, b: ScoreLog) -> list[str]:
    found: dict[str, None] = {}
    for task in a.settings.keys() & b.settings.keys():
        versions = [log.settings[task].get("lm_eval_version") for log in (a, b)]
        if None not in versions and versions[0] != versions[1]:
            found[f"A was evaluated with lm-eval {versions[0]} and B with {versions[1]}"] = None
    return list(found)


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED:,} more"
