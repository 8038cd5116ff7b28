"""A stage on disk: its spec, and the failure of its last attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """The spec of a stage, which any process with access to the store can run.

    Attributes:
        id, kind: the id and the kind of the artifact that the stage writes.
        front_door: the function of `amnesia_bench` that the stage calls with its request.
        request: the request as JSON; its locations are relative to the store.
        command: the equivalent `amnesia` command line, to run it by hand.
        inputs: the stages whose artifacts it reads: id to kind.
        threads: the number of CPU threads.
        gpus: the number of GPUs; with more than one, training runs one process per GPU.
    """

    id: str
    kind: str
    front_door: str
    request: Mapping[str, object]
    command: tuple[str, ...]
    inputs: Mapping[str, str]
    threads: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class StageFailure:
    """The failure of the last attempt; `said` is the end of its log, `ended` UTC in ISO 8601."""

    exit_code: int
    ended: str
    said: str
