"""A small graph of real stages for tests, and drivers that run it in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from amnesia_bench.pipeline import stages
from amnesia_bench.pipeline.stage import Stage, closure
from amnesia_bench.store.layout import MANIFEST

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
from pathlib import Path
from amnesia_bench.errors import AmnesiaError
from amnesia_bench.pipeline.run import run_graph
from tests.support.pipelines import small_graph
try:
    print(run_graph(Path(sys.argv[1]), small_graph()))
except AmnesiaError as error:
    sys.exit(f"{error}")
"""


def small_command(store: Path) -> list[str]:
    """Return the command that runs the small graph."""
    return [sys.executable, "-c", _RUN, str(store)]


def small_driver(store: Path) -> subprocess.Popen[str]:
    """Start a driver of the small graph."""
    return _started(store, small_command(store))


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
