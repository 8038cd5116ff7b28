"""What tests of several pipelines share: a small graph that was run once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fork_server_socket() -> Iterator[str]:
    """The socket of one fork server; each run would start its own, which imports for seconds."""
    from amnesia_bench.pipeline.fork_server import fork_server

    with tempfile.TemporaryDirectory() as folder, fork_server(Path(folder)) as path:
        yield path


@pytest.fixture
def shared_server(fork_server_socket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all runs of a test use the same fork server."""
    from amnesia_bench.pipeline import run

    monkeypatch.setattr(run, "fork_server", lambda folder: nullcontext(fork_server_socket))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the small graph was run by one driver, at a path that shells dislike."""
    from amnesia_bench.pipeline.run import run_graph
    from tests.support.pipelines import small_graph

    store = tmp_path_factory.mktemp("made") / "a {store} of 'ü' \"$x\""
    outcome = run_graph(store, small_graph())
    assert (outcome.cached, outcome.done) == (0, 3)
    return store
