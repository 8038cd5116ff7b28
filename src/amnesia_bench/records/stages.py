"""A stage on disk: its spec, and a record of its last failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """The spec of a stage; with it, any process that can access the store can run the stage.

    Attributes:
        id, kind: the id and the kind of the artifact that the stage writes.
        front_door: the function of `amnesia_bench` that the stage calls with its request.
        request: the request as JSON; paths in it are relative to the store.
        command: the equivalent `amnesia` command line, for running the stage by hand.
        inputs: the ids of the stages whose artifacts this stage reads, mapped to their kinds.
        threads: the number of CPU threads that the stage uses.
        gpus: the number of GPUs that the stage uses; with more than one, training runs one process
            per GPU.
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
    """The failure of the last attempt to run a stage.

    `ended` is the UTC time in ISO 8601, and `said` the end of the attempt's log.
    """

    exit_code: int
    ended: str
    said: str


@dataclass(frozen=True, kw_only=True)
class StageAttempt:
    """One attempt to run a stage's command.

    `started` is the UTC time in ISO 8601. `seconds` is None while the attempt runs, and stays None
    if its worker was killed. `gpu` is the model of its `gpus` GPUs; None if it is unknown.
    """

    started: str
    seconds: float | None
    gpus: int
    gpu: str | None
