"""An engine whose answers count only while its checkpoint is the one that was hashed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from amnesia_bench.inference.protocol import Engine, Request
from amnesia_bench.records.evaluation import Generation
from amnesia_bench.store.held_files import HeldFiles


class HeldEngine:
    """Passes on what another engine answers, as long as the files behind it have not changed.

    Files are compared before each answer and not only after loading: loaded weights may be pages
    of the file still, and an engine of several processes loads them when it likes.

    Args:
        engine: the engine that answers.
        held: the files of its checkpoint, as they were when they were hashed.
    """

    def __init__(self, engine: Engine, held: HeldFiles) -> None:
        self._engine = engine
        self._held = held

    @property
    def settings(self) -> Mapping[str, str]:
        """Those of the engine behind it."""
        return self._engine.settings

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer every request; see `Engine.generate`.

        Raises:
            StageFailedError: a file of the checkpoint was changed; answers before that stand.
        """
        for generation in self._engine.generate(requests):
            self._held.check()
            yield generation
