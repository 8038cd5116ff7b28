"""A stage: one request of a front door that turns input artifacts into one output artifact.

Its id contains the kind, a readable name, and a hash of the request's cache-key fields, which refer
to inputs by their ids. Two experiments that need the same artifact therefore share the stage.
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

# Increase a number when a code change gives this kind another result for the same request.
VERSIONS: Mapping[str, int] = {
    "tokenizer": 1,
    "rows": 1,
    "download": 1,
    "initial": 1,
    "data": 1,
    "trained": 1,
    "converted": 1,
    "ranking": 1,
    "restored": 1,
    "prompts": 1,
    "recall": 2,  # prompts no longer end in an EOS that the tokenizer appends
    "answers": 2,  # as recall
    "scores": 2,  # how mathematical answers, instructions and programs are judged
}
_HASH_DIGITS = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One request, and the resources that it needs.

    Attributes:
        kind: a key of VERSIONS, and the name of the folder in the store.
        name: a readable name; part of the id.
        request: the request; its locations are relative to the store.
        inputs: the stages whose artifacts the request reads, without duplicates.
        work: the amounts of work from which costs are estimated.
        shape: the config of configs/model with the shape of the output checkpoint, if any.
        gpus: number of GPUs; 0 for a stage on the CPU.
        many_processes: whether the request has the field `workers`, a number of processes.
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
        """Kind, name, and a hash of everything that affects the result."""
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


def closure(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """Return the stages and all stages that they depend on, without duplicates, inputs first."""
    known: dict[str, Stage] = {}
    for stage in stages:
        known.update((reached.id, reached) for reached in _with_inputs(stage, known))
    order = TopologicalSorter({id: [i.id for i in s.inputs] for id, s in known.items()})
    return tuple(known[id] for id in order.static_order())


def unsettled(stages: Sequence[Stage], cached: Collection[str]) -> list[Stage]:
    """Return the stages that are not done, and the finished stages that depend on them.

    The latter become stale if the contents of their inputs change.
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
