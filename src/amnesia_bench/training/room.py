"""Check before training that memory and disk suffice, since a run may take hours until they do not.

The bounds are what every run needs, so that no run is refused that would fit: in memory weights,
gradients and two moments in the master dtype, without activations; on disk the saves that are kept,
each with weights and moments, and the published checkpoint.
"""

from __future__ import annotations

import math
from pathlib import Path

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import StageFailedError
from amnesia_bench.hub.repository import NO_SPACE_HINT, check_space
from amnesia_bench.inference.memory import available_cpu_bytes
from amnesia_bench.store.files import nearest_existing
from amnesia_bench.store.layout import training_path
from amnesia_bench.weights.checkpoint import Checkpoint

_MASTER_BYTES = {"fp32": 4, "bf16": 2}


def check_resources(init: Checkpoint, run: TrainingRun, out: Path, *, on_cpu: bool) -> None:
    """Raise an error if a run fits neither into the memory of this machine nor on its disk.

    A run that resumes has its saves already, so its disk is not checked.

    Raises:
        StageFailedError: memory or disk do not suffice; nothing was written.
    """
    parameters = sum(math.prod(shape) for shape in init.shapes.values())
    master = _MASTER_BYTES[run.recipe.master_dtype]
    # `align` trains the mixers only.
    trained = 0 if run.train.objective == "align" else parameters
    needed = master * (parameters + 3 * trained)
    if on_cpu and needed > (free := available_cpu_bytes()):
        raise StageFailedError(
            f"{init.folder}: training its {parameters:,} parameters needs at least {needed:,} "
            f"bytes of memory, and {free:,.0f} are free",
            hint="Close other programs, or use a machine with more memory or a GPU.",
        )
    if not training_path(out).exists():
        saves = run.train.checkpoints.keep * 3 * master * trained
        existing = nearest_existing(out)
        check_space(saves + 2 * parameters, existing, str(out), NO_SPACE_HINT)
