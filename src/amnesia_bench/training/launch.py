"""torchrun, with the exit code of the workers: 75 asks a batch system to start the job again.

  python -m amnesia_bench.training.launch --nproc-per-node 8 \
      -m amnesia_bench.cli.main train --config sft_miromind_2b ...

torchrun by itself ends with 1 whatever its workers said, and does not pass SIGUSR1 on to them.
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
    "--shutdown-timeout=600",  # seconds for a save; a batch system that waits less has its own
)


def launch(arguments: Sequence[str]) -> int:
    """Run torchrun with these arguments and return what its first failed worker returned."""
    try:
        main([*_SETTINGS, *arguments])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return int(failure.exitcode) if failure.exitcode > 0 else int(ExitCode.STAGE_FAILED)
    except SignalException:
        # The workers got the signal too and had time to save; if it was too short, the save before
        # serves.
        return int(ExitCode.REQUEUE)
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
