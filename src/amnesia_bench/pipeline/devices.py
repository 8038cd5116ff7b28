"""Which GPUs of this machine a stage computes on: each is lent to one stage at a time.

The scheduler counts GPUs and does not say which, and a command takes all that it sees.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from amnesia_bench.errors import BusyError, MissingEnvironmentError
from amnesia_bench.store.files import make_folder
from amnesia_bench.store.lease import holding_lease

VARIABLE = "CUDA_VISIBLE_DEVICES"
_WAIT_SECONDS = 1.0


def visible_gpus(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if named := environ.get(VARIABLE):
        return tuple(name.strip() for name in named.split(","))
    try:
        import torch
    except ImportError:
        return ()
    return tuple(map(str, range(torch.cuda.device_count())))


def lending_folder() -> Path:
    """Return the folder in which this user's processes on this machine agree on GPUs."""
    return Path(tempfile.gettempdir()) / f"amnesia-gpus-{os.getuid()}"


@contextmanager
def holding_gpus(count: int, gpus: Sequence[str], lending: Path) -> Iterator[tuple[str, ...]]:
    """Hold so many of some GPUs, as soon as so many are free.

    Raises:
        MissingEnvironmentError: there are not so many.
    """
    if count > len(gpus):
        raise MissingEnvironmentError(
            f"the stage takes {count} GPUs, and {len(gpus)} can be seen here",
            hint=f"profile.gpus={len(gpus)}; it changes no result.",
        )
    make_folder(lending)
    while True:
        with ExitStack() as held:
            # All or none: two stages with half of them each would wait for ever.
            if len(taken := _taken(held, count, gpus, lending)) == count:
                yield taken
                return
        time.sleep(_WAIT_SECONDS)


def _taken(held: ExitStack, count: int, gpus: Sequence[str], lending: Path) -> tuple[str, ...]:
    taken: list[str] = []
    for gpu in gpus:
        if len(taken) == count:
            break
        try:
            held.enter_context(holding_lease(lending / gpu))
        except BusyError:
            continue
        taken.append(gpu)
    return tuple(taken)
