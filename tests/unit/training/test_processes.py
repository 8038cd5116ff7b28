"""The first process may take hours over files, and the others do not give up on it."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from amnesia_bench.errors import UserError
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.training import export
from amnesia_bench.training.processes import joined_processes


def timeout_of(group: Any) -> timedelta:
    """The time after which gloo gives up waiting for another process."""
    timeout: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    return timeout


def test_waiting_for_the_first_process_has_a_long_timeout_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups: list[Any] = []
    honest = dist.broadcast_object_list

    def broadcast(values: list[Any], group: Any = None) -> None:
        groups.append(group)
        honest(values, group=group)

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    with joined_processes() as processes:
        assert processes.on_first(lambda: "result") == "result"
        with pytest.raises(UserError, match="refused"):
            processes.on_first(refuse)
        assert [timeout_of(group) for group in groups] == [timedelta(hours=24)] * 2
        assert timeout_of(dist.group.WORLD) < timedelta(hours=1)


def refuse() -> None:
    raise UserError("refused")


def test_all_processes_wait_for_the_publication(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(export, "_publish", lambda *_: pytest.fail("only the first publishes"))
    learner: Any = SimpleNamespace(trained={}, untouched={}, objective=None)
    init: Any = SimpleNamespace(tensors={})
    second: Any = SimpleNamespace(first=False, on_first=waited.append)
    provenance = collect_provenance([], seeds={})
    what = export.Export(
        init=init, parents=(), side_files=(), speed=Path("speed"), provenance=provenance
    )
    export.publish_trained(what, learner, second, Path("out"))
    assert len(waited) == 1


# In a process of its own, since a handler that waits for itself would never end. Another process
# sends, because a thread would have to wait for the handlers to run.
_MANY_SIGNALS = """
import os, subprocess, sys
from amnesia_bench.training.processes import stop_requests

send = "import os, signal\\nfor _ in range(20000):\\n"
send += f"    os.kill({os.getpid()}, signal.SIGTERM); os.kill({os.getpid()}, signal.SIGUSR1)"
with stop_requests() as stop_requested:
    sender = subprocess.Popen([sys.executable, "-c", send])
    while sender.poll() is None:
        sum(range(100))
    print(stop_requested())
"""


def test_signals_that_interrupt_each_others_handlers_request_a_stop() -> None:
    command = [sys.executable, "-c", _MANY_SIGNALS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "True\n"
