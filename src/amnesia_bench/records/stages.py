"""A stage on disk: what it asks, and how an attempt at it failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """A stage, ready to be run by any process that sees its store.

    Attributes:
        id, kind: of the stage.
        front_door: the function of `amnesia_bench` that answers its request.
        request: the request as JSON; its locations are relative to the store.
        command: the same request as `amnesia` takes it, to type by hand.
        inputs: the stages whose artifacts it reads: id to kind.
        threads: CPU threads that it computes with.
        gpus: GPUs that it takes; more than one run as many processes of a training.
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
    """How the last attempt ended; `said` is the end of its log. `ended` is UTC in ISO 8601."""

    exit_code: int
    ended: str
    said: str
