"""A small graph of real stages for tests, and drivers that run it in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from amnesia_bench.pipeline import stages
from amnesia_bench.pipeline.stage import Stage, closure
from amnesia_bench.store.layout import MANIFEST
from amnesia_bench.store.processes import parent_of

ROOT = Path(__file__).resolve().parents[2]
ROWS = ("data.source.rows=30",)


def small_graph() -> tuple[Stage, ...]:
    """A tokenizer, and two sources of data that it is needed for."""
    tokenizer = stages.tokenizer(0)
    return closure(stages.data(name, ROWS, tokenizer) for name in ("tiny_cot", "tiny_programs"))


def starts(store: Path, stage: Stage) -> int:
    """Return how often a stage's command was started."""
    return (store / "stages" / stage.id / "log.txt").read_text().count("$ amnesia ")


_RUN = """\
import sys
from contextlib import nullcontext
from pathlib import Path
from amnesia_bench.errors import AmnesiaError
from amnesia_bench.pipeline import run as module
from amnesia_bench.pipeline.run import run_graph
from tests.support.pipelines import small_graph
if "--without-server" in sys.argv:
    module.fork_server = nullcontext
try:
    print(run_graph(Path(sys.argv[1]), small_graph()))
except AmnesiaError as error:
    sys.exit(f"{error}")
"""


def small_command(store: Path, *options: str) -> list[str]:
    """Return the command that runs the small graph; `--without-server` as with GPUs."""
    return [sys.executable, "-c", _RUN, str(store), *options]


def small_driver(store: Path, *options: str) -> subprocess.Popen[str]:
    """Start a driver of the small graph."""
    return _started(store, small_command(store, *options))


def driver(store: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start `amnesia run`."""
    command = [sys.executable, "-m", "amnesia_bench.cli.main", "run", *overrides]
    return _started(store, [*command, f"--out={store.parent / 'results'}"])


def _started(store: Path, command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        # All that it starts can be told by this from what others run.
        env={**os.environ, "AMNESIA_DEBUG": "", "AMNESIA_STORE": str(store)},
        start_new_session=True,
    )


def finished(store: Path) -> dict[str, str]:
    """Return every finished stage of a store and when its manifest says that it ended."""
    manifests = store.glob(f"*/*/{MANIFEST}")
    return {
        path.parent.name: json.loads(path.read_text())["provenance"]["ended"]
        for path in manifests
        if not path.parent.name.startswith(".")
    }


def processes_of(store: Path) -> dict[str, list[int]]:
    """Return the pids of the drivers, servers, workers and commands of a store, and of no other."""
    found: dict[str, list[int]] = {"driver": [], "server": [], "worker": [], "command": []}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if f"AMNESIA_STORE={store}" not in _words(folder / "environ"):
                continue
            parent = parent_of(int(folder.name))
            if kind := _kind(_words(folder / "cmdline"), _words(Path(f"/proc/{parent}/cmdline"))):
                found[kind].append(int(folder.name))
    return found


def _words(path: Path) -> list[str]:
    """Return the parts of a file of /proc."""
    return path.read_bytes().decode(errors="replace").split("\0")


def _kind(command: list[str], parent: list[str]) -> str | None:
    if (
        "amnesia_bench.pipeline.fork_server" in command
    ):  # a child of the server has its command line
        return "command" if "amnesia_bench.pipeline.fork_server" in parent else "server"
    if "amnesia_bench.pipeline.worker" in command:
        return "worker"
    if "amnesia_bench.pipeline.execute" in command:
        return "command"
    if "amnesia_bench.cli.main" in command and "run" in command:
        return "driver"
    return None


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something holds, and fail if it does not in that time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"did not come true in {seconds:.0f} s"
        time.sleep(0.05)
