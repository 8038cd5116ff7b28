"""What a driver tells a worker about a stage, and what a worker says when it failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StageOrder:
    """One call of `amnesia`, resolved.

    `inputs` are the stages whose folders it reads: id to kind. `threads` is how many it computes
    with; `gpus` above 1 starts as many processes.
    """

    id: str
    kind: str
    command: tuple[str, ...]
    inputs: Mapping[str, str]
    settings: Mapping[str, object]
    threads: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class StageFailure:
    """How the last attempt ended; `said` is the end of its log. `ended` is UTC in ISO 8601."""

    exit_code: int
    ended: str
    said: str
