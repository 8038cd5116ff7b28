"""Run torchrun, and exit with the exit code of its workers; 75 asks for the job to be requeued.

  python -m amnesia_bench.training.launch --nproc-per-node 8 \
      -m amnesia_bench.cli.main train --config sft_miromind_2b ...

This wrapper is needed because torchrun itself exits with 1 whenever a worker fails, and does not
forward SIGUSR1 to the workers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from amnesia_bench.errors import ExitCode

_SETTINGS = (
    "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    "--shutdown-timeout=600",  # seconds for saving a checkpoint; a batch system may allow less
)


def launch(arguments: Sequence[str]) -> int:
    """Run torchrun with these arguments; return the exit code of the first failed worker, or 0."""
    try:
        main([*_SETTINGS, *arguments])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return int(failure.exitcode) if failure.exitcode > 0 else int(ExitCode.STAGE_FAILED)
    except SignalException:
        # The workers received the signal too, and had time to save a checkpoint. If that time was
        # too short, the requeued job resumes from the previous checkpoint.
        return int(ExitCode.REQUEUE)
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
