"""A stage: one request whose execution creates one artifact from the artifacts of other stages.

The id of a stage contains its kind, a readable name, and a hash of the cache-key fields of its
request. These fields identify inputs by their ids, so experiments that need the same artifact share
one stage.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path

from amnesia_bench.config.cache_key import cache_key
from amnesia_bench.costs.work import Work
from amnesia_bench.requests.base import StageRequest
from amnesia_bench.store.layout import artifact_path

# Increase the version of a kind when a code change alters its results for the same request.
VERSIONS: Mapping[str, int] = {
    "tokenizer": 2,  # the instruction controls, which were rewritten, are no longer trained on
    "rows": 1,
    "download": 1,
    "initial": 1,
    "data": 1,
    "trained": 1,
    "converted": 1,
    "layer_scores": 1,
    "selection": 1,
    "ranking": 1,
    "measurement": 1,
    "restored": 1,
    "prompts": 1,
    "analysis": 1,
    "recall": 2,  # prompts no longer end in an EOS that the tokenizer appends
    "answers": 2,  # for the same reason as recall
    "scores": 2,  # changes in how mathematical answers, instructions and programs are judged
}
_HASH_DIGITS = 12
_PART = re.compile(rf"\.part\d+of\d+(?=-[0-9a-f]{{{_HASH_DIGITS}}}\Z)")


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One request, its input stages, and the resources that it needs.

    Attributes:
        kind: a key of VERSIONS; also the name of the store's folder for artifacts of this kind.
        name: a readable name, which is part of the id.
        request: the request; its locations are relative to the store.
        inputs: the stages whose artifacts the request uses, without duplicates.
        work: the amount of work from which costs are estimated.
        shape: name of the config in configs/model with the shape of the output checkpoint; None if
            the output is not a checkpoint.
        gpus: number of GPUs that the stage uses; 0 for a stage on the CPU.
        many_processes: whether the stage runs several processes; if so, the request's field
            `workers` is their number.
    """

    kind: str
    name: str
    request: StageRequest
    inputs: tuple[Stage, ...]
    work: Work
    shape: str | None = None
    gpus: int = 0
    many_processes: bool = False

    @cached_property
    def id(self) -> str:
        """The id: the kind, the name, and a hash of everything that affects the result."""
        key = [VERSIONS[self.kind], self.request.front_door, cache_key(self.request)]
        text = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
        return f"{self.kind}.{re.sub(r'[^A-Za-z0-9._=+-]+', '-', self.name)}-{digest}"

    @property
    def location(self) -> Path:
        """The folder of the artifact, relative to a store."""
        return Path(self.kind, self.id)

    def folder(self, store: Path) -> Path:
        """Return the folder of the artifact in a store."""
        return artifact_path(store, self.kind, self.id)


def whole_of(stage_id: str) -> str | None:
    """Return the id of the stage of which a stage is a part; None if it is not a part."""
    whole, parts = _PART.subn("", stage_id)
    return whole if parts else None


def names_of_stage(stage_id: str) -> tuple[str, ...]:
    """Return all names of a stage: its id with or without the kind and the hash."""
    without_hash = stage_id.rpartition("-")[0]
    return stage_id, without_hash, stage_id.partition(".")[2], without_hash.partition(".")[2]


def closure(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """Return the stages and all their direct and indirect inputs, each stage after its inputs."""
    known: dict[str, Stage] = {}
    for stage in stages:
        known.update((reached.id, reached) for reached in _with_inputs(stage, known))
    order = TopologicalSorter({id: [i.id for i in s.inputs] for id, s in known.items()})
    return tuple(known[id] for id in order.static_order())


def unsettled(stages: Sequence[Stage], cached: Collection[str]) -> list[Stage]:
    """Return the stages that are not done, and the finished stages that depend on them.

    The finished ones become stale if the contents of their inputs change. `cached` are the ids of
    the finished stages.
    """
    result: dict[str, Stage] = {}
    for stage in stages:
        if stage.id not in cached or any(read.id in result for read in stage.inputs):
            result[stage.id] = stage
    return list(result.values())


def _with_inputs(stage: Stage, known: Mapping[str, Stage]) -> Iterator[Stage]:
    if stage.id not in known:
        yield stage
        for read in stage.inputs:
            yield from _with_inputs(read, known)
