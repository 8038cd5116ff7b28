"""Assign the GPUs of this machine to stages, each GPU to at most one stage at a time.

This is necessary because the scheduler only counts GPUs, and a command uses every GPU that is
visible to it.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from amnesia_bench.errors import BusyError, MissingEnvironmentError
from amnesia_bench.store.files import make_folder
from amnesia_bench.store.lease import holding_lease

VARIABLE = "CUDA_VISIBLE_DEVICES"
_WAIT_SECONDS = 1.0


def visible_gpus(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the GPUs that this process may use, in the notation of CUDA_VISIBLE_DEVICES."""
    if (names := environ.get(VARIABLE)) is not None:
        # CUDA ignores an invalid name and all names after it; "" and "-1" are used to hide all.
        given = (name.strip() for name in names.split(","))
        return tuple(itertools.takewhile(lambda name: name not in ("", "-1"), given))
    try:
        import torch  # imported here: it is optional and slow, and only stages on GPUs need it
    except ImportError:
        return ()
    return tuple(map(str, range(torch.cuda.device_count())))


def gpu_lease_folder() -> Path:
    """Return the folder of GPU leases, shared by this user's processes on this machine."""
    return Path(tempfile.gettempdir()) / f"amnesia-gpus-{os.getuid()}"


@contextmanager
def holding_gpus(count: int, gpus: Sequence[str], leases: Path) -> Iterator[tuple[str, ...]]:
    """Wait until `count` of `gpus` are free, lease them, and yield their names.

    The leases are released at the end of the `with` block.

    Raises:
        MissingEnvironmentError: `gpus` has fewer than `count` items.
    """
    if count > len(gpus):
        raise MissingEnvironmentError(
            f"the stage needs {count} GPUs; visible here: {len(gpus)}",
            hint=f"profile.gpus={len(gpus)}; it does not affect results.",
        )
    make_folder(leases)
    while True:
        with ExitStack() as stack:
            # Lease all GPUs or none: two stages with half of the GPUs each would wait forever.
            if len(acquired := _acquire(stack, count, gpus, leases)) == count:
                yield acquired
                return
        time.sleep(_WAIT_SECONDS)


def _acquire(stack: ExitStack, count: int, gpus: Sequence[str], leases: Path) -> tuple[str, ...]:
    acquired: list[str] = []
    for gpu in gpus:
        if len(acquired) == count:
            break
        try:
            # The names of MIG devices may contain slashes, as in MIG-GPU-<UUID>/1/0.
            stack.enter_context(holding_lease(leases / quote(gpu, safe="")))
        except BusyError:
            continue
        acquired.append(gpu)
    return tuple(acquired)
