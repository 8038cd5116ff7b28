"""Execute one stage in this process: read its request, call the front door, return an exit code.

A worker starts it as `python -m amnesia_bench.pipeline.execute STORE ID`, or lets the fork server
fork a process in which everything is already imported (`fork_server`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import amnesia_bench
from amnesia_bench.errors import ExitCode
from amnesia_bench.guard import guarded, only_rank_zero_reports
from amnesia_bench.pipeline.specs import read_spec, request_of
from amnesia_bench.store.layout import artifact_path


def execute(store: Path, stage_id: str) -> int:
    """Execute a stage's request, and return the exit code that its command line would return."""
    spec = read_spec(store, stage_id)
    request = request_of(spec).below(store)
    folder = artifact_path(store, spec.kind, spec.id)
    # Records store this as the command that made the artifact, so that it can be run by hand.
    sys.argv = ["amnesia", *spec.command]

    def run() -> ExitCode:
        getattr(amnesia_bench, spec.front_door)(request, folder / request.out_file)
        return ExitCode.DONE

    # Training on several GPUs takes one process per GPU; only the first reports a failure.
    return guarded(f"amnesia {spec.command[0]}", lambda: only_rank_zero_reports(run), folder)


def execute_arguments(arguments: Sequence[str]) -> int:
    """Execute the stage of the arguments STORE ID."""
    store, stage_id = arguments
    return execute(Path(store), stage_id)


if __name__ == "__main__":
    sys.exit(execute_arguments(sys.argv[1:]))
