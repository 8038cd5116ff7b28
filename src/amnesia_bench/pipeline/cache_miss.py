"""Explain why a stage is not a cache hit: how it differs from a finished stage, and why.

A stage's id is a hash of its request, which contains the ids of its inputs. If an input differs,
the cause is in the input, so the explanation follows it, down to the settings that differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from amnesia_bench.config.cache_key import cache_key
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.bookkeeping import StageState, changed_inputs, read_failure, state_of
from amnesia_bench.pipeline.specs import known_specs, request_of
from amnesia_bench.pipeline.stage import Stage, closure, names_of_stage
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.store.hashing import is_finished
from amnesia_bench.store.layout import artifact_path

MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class SettingDifference:
    """A setting of a request with its value in the finished stage and in the planned one.

    The values are JSON; MISSING if the request has no such setting.
    """

    setting: str
    finished: str
    planned: str


@dataclass(frozen=True, kw_only=True)
class StageDifference:
    """How a planned stage differs from another one.

    Attributes:
        stage, other: the ids of the planned stage and of the other one.
        settings: the settings that differ, besides inputs.
        inputs: the inputs that differ, each compared with that of the other stage.
        new_inputs: the ids of inputs of the planned stage to which no input of the other one
            corresponds.
    """

    stage: str
    other: str
    settings: tuple[SettingDifference, ...]
    inputs: tuple[StageDifference, ...]
    new_inputs: tuple[str, ...]

    @property
    def only_version(self) -> bool:
        """Whether the requests are equal, so that only the version of the kind differs."""
        return not (self.settings or self.inputs or self.new_inputs)


@dataclass(frozen=True, kw_only=True)
class CacheMiss:
    """Why a stage is not a cache hit.

    Attributes:
        stage: the stage.
        state: its state; `StageState.CACHED` if it is a cache hit.
        changed_inputs: for a stale stage, the inputs that changed, as "kind/id".
        failure: the end of the log of its last attempt, if that failed.
        nearest: the difference from the nearest finished stage of the same kind, if there is one.
    """

    stage: Stage
    state: StageState
    changed_inputs: tuple[str, ...]
    failure: str | None
    nearest: StageDifference | None


def explain(store: Path, stages: Sequence[Stage], name: str) -> CacheMiss:
    """Explain why the stage with this name is not a cache hit.

    Args:
        store: the folder of all artifacts.
        stages: the stages of the experiments, which contain the stage.
        name: an id, or an id without its hash, with or without the kind.

    Raises:
        UserError: there is no such stage, or there are several.
    """
    stage = find_stage(stages, name)
    state = state_of(store, stage.kind, stage.id)
    failure = read_failure(store, stage.id) if state is StageState.FAILED else None
    specs = {spec.id: spec for spec in known_specs(store)}
    nearest = None
    if state not in (StageState.CACHED, StageState.STALE):
        finished = [
            spec
            for spec in specs.values()
            if spec.kind == stage.kind and is_finished(artifact_path(store, spec.kind, spec.id))
        ]
        nearest = _nearest(stage, finished, specs)
    return CacheMiss(
        stage=stage,
        state=state,
        changed_inputs=tuple(changed_inputs(store, stage.id)) if state is StageState.STALE else (),
        failure=None if failure is None else failure.said,
        nearest=nearest,
    )


def find_stage(stages: Sequence[Stage], name: str) -> Stage:
    """Return the stage with this id or name; among several, the one on which all others depend.

    Raises:
        UserError: there is no such stage, or there are several.
    """
    matches = [stage for stage in stages if name in names_of_stage(stage.id)]
    first = [stage for stage in matches if all(_is_in(stage, other) for other in matches)]
    if len(found := first or matches) == 1:
        return found[0]
    if found:
        ids = "\n".join(f"  {stage.id}" for stage in found)
        raise UserError(f"{name}: {len(found)} stages have this name", hint=f"One of\n{ids}")
    known = sorted({known for stage in stages for known in names_of_stage(stage.id)})
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    meant = [stage.id for each in close for stage in stages if each in names_of_stage(stage.id)]
    listed = "Did you mean\n" + "\n".join(f"  {id}" for id in dict.fromkeys(meant))
    raise UserError(
        f"{name}: these experiments have no such stage",
        hint=listed if close else "--stages lists their stages.",
    )


def _is_in(stage: Stage, other: Stage) -> bool:
    return stage.id in {reached.id for reached in closure([other])}


def _nearest(
    stage: Stage, finished: Sequence[StageSpec], specs: Mapping[str, StageSpec]
) -> StageDifference | None:
    """Return the smallest difference from a finished stage, among those of the same name if any."""
    name = stage.id.rpartition("-")[0]
    same_name = [spec for spec in finished if spec.id.rpartition("-")[0] == name]
    differences = [
        difference
        for spec in same_name or finished
        if (difference := _difference(stage, spec, specs)) is not None
    ]
    return min(
        differences, key=lambda difference: (_size(difference), difference.other), default=None
    )


def _size(difference: StageDifference) -> int:
    own = len(difference.settings) + len(difference.new_inputs)
    return own + sum(1 + _size(read) for read in difference.inputs)


def _difference(
    stage: Stage, spec: StageSpec, specs: Mapping[str, StageSpec]
) -> StageDifference | None:
    """Return how a planned stage differs from a stage in the store; None if it is unreadable."""
    try:
        before = _flat(cache_key(request_of(spec)))
    except UserError:
        return None
    now = _flat(cache_key(stage.request))
    settings: list[SettingDifference] = []
    inputs: dict[str, StageDifference] = {}
    new: dict[str, None] = {}
    for setting in dict.fromkeys([*now, *before]):
        old, planned = before.get(setting, MISSING), now.get(setting, MISSING)
        if old == planned:
            continue
        read = _input_in(planned, stage.inputs)
        if read is None:
            settings.append(SettingDifference(setting=setting, finished=old, planned=planned))
            continue
        other = next(
            (
                specs[id]
                for id, kind in spec.inputs.items()
                if id in specs and kind == read.kind and f"{kind}/{id}" in old
            ),
            None,
        )
        compared = None if other is None else _difference(read, other, specs)
        if compared is None:
            new[read.id] = None
        else:
            inputs[read.id] = compared
    return StageDifference(
        stage=stage.id,
        other=spec.id,
        settings=tuple(settings),
        inputs=tuple(inputs.values()),
        new_inputs=tuple(new),
    )


def _input_in(value: str, inputs: Sequence[Stage]) -> Stage | None:
    """Return the input to which a location in a request refers."""
    return next((read for read in inputs if read.location.as_posix() in value), None)


def _flat(value: object) -> dict[str, str]:
    """Return the JSON of each value of a nested cache key, by its path (`run.train.seed`)."""
    return dict(_leaves(value, ""))


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(value, ensure_ascii=False)
