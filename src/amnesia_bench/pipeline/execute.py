"""One stage in this process: read its request, call the front door, return an exit code.

A worker starts it as `python -m amnesia_bench.pipeline.execute STORE ID`, or has it forked from a
process that has imported everything (`fork_server`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import amnesia_bench
from amnesia_bench.errors import ExitCode
from amnesia_bench.guard import guarded
from amnesia_bench.pipeline.specs import read_spec, request_of
from amnesia_bench.store.layout import artifact_path


def execute(store: Path, stage_id: str) -> int:
    """Answer a stage's request, and return the exit code of the command that asks the same."""
    spec = read_spec(store, stage_id)
    request = request_of(spec).below(store)
    folder = artifact_path(store, spec.kind, spec.id)
    # What records name as the command that made an artifact: to type it again by hand.
    sys.argv = ["amnesia", *spec.command]

    def run() -> ExitCode:
        door = getattr(amnesia_bench, spec.front_door)
        result = door(request, folder / request.out_file)
        return result if isinstance(result, ExitCode) else ExitCode.DONE

    return guarded(f"amnesia {spec.command[0]}", run, folder)


def execute_arguments(arguments: Sequence[str]) -> int:
    """Execute the stage that the arguments name, STORE ID."""
    store, stage_id = arguments
    return execute(Path(store), stage_id)


if __name__ == "__main__":
    sys.exit(execute_arguments(sys.argv[1:]))
