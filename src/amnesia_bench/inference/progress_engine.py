"""An engine that reports its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from amnesia_bench.inference.protocol import Engine, Request
from amnesia_bench.records.evaluation import Generation


def silent(*_: object) -> None:
    """Report nothing."""


class WatchedEngine:
    """Hands on what the engine behind it answers.

    Args:
        engine: that one.
        report: told how many of how many requests are answered: before the first, after each.
    """

    def __init__(self, engine: Engine, report: Callable[[int, int], None]) -> None:
        self._engine = engine
        self._report = report

    @property
    def settings(self) -> Mapping[str, str]:
        """Those of the engine behind it."""
        return self._engine.settings

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer every request; see `Engine.generate`."""
        self._report(0, len(requests))
        for done, generation in enumerate(self._engine.generate(requests), start=1):
            self._report(done, len(requests))
            yield generation
