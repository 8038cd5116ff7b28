"""A stage: one call of `amnesia` that makes one folder of others, under an id of its contents.

The id covers what decides the result and nothing else: kind, version, settings, and the ids of
the stages that it reads. Two experiments that need the same folder mean the same stage.
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
from typing import Any

from amnesia_bench.costs.work import Work
from amnesia_bench.store.layout import artifact_path

# Raise a number when code changes what its kind of stage makes of the same settings.
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


@dataclass(frozen=True, kw_only=True)
class Input:
    """An argument that names a folder of another stage, or a file in it."""

    stage: Stage
    prefix: str = ""
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class Output:
    """The argument that names the folder to write, or a file in it."""

    file: str = ""


Argument = str | Input | Output


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One call of `amnesia`.

    Attributes:
        kind: a key of VERSIONS, and the folder of the store.
        name: for people; part of the id.
        arguments: of the command.
        settings: everything besides the inputs that decides the result, as JSON values.
        shape: the file of configs/model whose shape the checkpoint has that it makes, if it does.
        work: what estimates are made of.
        gpus: how many it takes; 0 for a stage of the CPU.
        workers_option: how its command is told how many processes it may run at once; None where
            it runs one.
    """

    kind: str
    name: str
    arguments: tuple[Argument, ...]
    settings: Mapping[str, Any]
    work: Work
    shape: str | None = None
    gpus: int = 0
    workers_option: str | None = None

    @cached_property
    def inputs(self) -> tuple[Stage, ...]:
        """The stages it reads, each once, in the order of its arguments."""
        found = {a.stage.id: a.stage for a in self.arguments if isinstance(a, Input)}
        return tuple(found.values())

    @cached_property
    def id(self) -> str:
        """Its name and a hash of what decides the result."""
        inputs = [[a.prefix, a.stage.id, a.file] for a in self.arguments if isinstance(a, Input)]
        said = [self.kind, VERSIONS[self.kind], inputs, self.settings]
        text = json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
        return f"{re.sub(r'[^A-Za-z0-9._=+-]+', '-', self.name)}-{digest}"

    @property
    def title(self) -> str:
        """Kind and id for people, and what tells it from others of its name."""
        return f"{self.kind} {self.id}{about(self.kind, self.settings)}"

    def folder(self, store: Path) -> Path:
        """Return where its artifact lies."""
        return artifact_path(store, self.kind, self.id)

    def command(self, store: Path, threads: int = 1) -> tuple[str, ...]:
        """Return the arguments of `amnesia`, with the folders of a store and its share of cores."""
        workers = () if self.workers_option is None else (self.workers_option, str(threads))
        return (*(self._typed(argument, store) for argument in self.arguments), *workers)

    def _typed(self, argument: Argument, store: Path) -> str:
        if isinstance(argument, Input):
            return f"{argument.prefix}{argument.stage.folder(store) / argument.file}"
        if isinstance(argument, Output):
            return str(self.folder(store) / argument.file)
        return argument


def about(kind: str, settings: Mapping[str, Any]) -> str:
    """Return what tells a stage from others of its name: of recall the lengths, else nothing."""
    lengths = settings.get("lengths")
    return f" at {', '.join(map(str, lengths))}" if kind == "recall" and lengths else ""


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
        if stage.id not in cached or any(each.id in found for each in stage.inputs):
            found[stage.id] = stage
    return list(found.values())


def _with_inputs(stage: Stage, known: Mapping[str, Stage]) -> Iterator[Stage]:
    if stage.id not in known:
        yield stage
        for each in stage.inputs:
            yield from _with_inputs(each, known)
