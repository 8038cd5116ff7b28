"""Execute one stage in this process: read its request, and call the function that executes it.

A worker starts this module as `python -m amnesia_bench.pipeline.execute STORE ID`, or asks the fork
server for a process that has already imported all packages (see `fork_server`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import amnesia_bench
from amnesia_bench.errors import ExitCode
from amnesia_bench.guard import guarded, only_rank_zero_reports
from amnesia_bench.pipeline.specs import read_spec, request_of
from amnesia_bench.store.layout import STORE_VARIABLE, artifact_path


def execute(store: Path, stage_id: str) -> int:
    """Execute a stage's request, and return the exit code of the equivalent command line."""
    spec = read_spec(store, stage_id)
    request = request_of(spec).below(store)
    folder = artifact_path(store, spec.kind, spec.id)
    # Readers of data sets look for fetched files in this store.
    os.environ[STORE_VARIABLE] = str(store)
    # Records store sys.argv as the command that made the artifact, so that users can repeat it.
    sys.argv = ["amnesia", *spec.command]

    def run() -> ExitCode:
        getattr(amnesia_bench, spec.front_door)(request, folder / request.out_file)
        return ExitCode.DONE

    # Training on several GPUs uses one process per GPU; only the process of rank 0 reports errors.
    return guarded(f"amnesia {spec.command[0]}", lambda: only_rank_zero_reports(run), folder)


def execute_arguments(arguments: Sequence[str]) -> int:
    """Execute the stage that the command-line arguments STORE ID name."""
    store, stage_id = arguments
    return execute(Path(store), stage_id)


if __name__ == "__main__":
    sys.exit(execute_arguments(sys.argv[1:]))
