"""A stage: one request of a front door that turns input artifacts into one output artifact.

Its id names the kind, what it is of, and a hash of the request's cache-key fields, in which the
inputs stand by their ids. Two experiments that need the same artifact mean the same stage.
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

# Raise a number when code changes what its kind of stage makes of the same request.
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
    """One request, and what running it takes.

    Attributes:
        kind: a key of VERSIONS, and the folder of the store.
        name: what tells it from others of its kind, for people; part of the id.
        request: what is asked, with its inputs at their places in a store.
        inputs: the stages whose artifacts the request reads, each once.
        work: the amounts that estimates are made of.
        shape: the file of configs/model whose shape the checkpoint has that it makes, if any.
        gpus: how many it takes; 0 for a stage of the CPU.
        many_processes: whether its request has `workers`, processes that run at once.
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
        """Kind, name, and a hash of everything that decides the result."""
        key = [VERSIONS[self.kind], self.request.front_door, cache_key(self.request)]
        text = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
        return f"{self.kind}.{re.sub(r'[^A-Za-z0-9._=+-]+', '-', self.name)}-{digest}"

    @property
    def location(self) -> Path:
        """Its artifact's folder, relative to a store."""
        return Path(self.kind, self.id)

    def folder(self, store: Path) -> Path:
        """Return where its artifact lies."""
        return artifact_path(store, self.kind, self.id)


def closure(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """Return the stages and all that they read, each id once, inputs before their readers."""
    known: dict[str, Stage] = {}
    for stage in stages:
        known.update((each.id, each) for each in _with_inputs(stage, known))
    order = TopologicalSorter({id: [i.id for i in s.inputs] for id, s in known.items()})
    return tuple(known[id] for id in order.static_order())


def unsettled(stages: Sequence[Stage], cached: Collection[str]) -> list[Stage]:
    """Return the stages that are not done, and all that were made of these before.

    What these hold when they are done decides if those are stale.
    """
    found: dict[str, Stage] = {}
    for stage in stages:
        if stage.id not in cached or any(read.id in found for read in stage.inputs):
            found[stage.id] = stage
    return list(found.values())


def _with_inputs(stage: Stage, known: Mapping[str, Stage]) -> Iterator[Stage]:
    if stage.id not in known:
        yield stage
        for read in stage.inputs:
            yield from _with_inputs(read, known)
