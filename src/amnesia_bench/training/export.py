"""Publish what was trained as a checkpoint in the official format, with its ancestry."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from amnesia_bench.errors import StageFailedError
from amnesia_bench.modeling.shard_writer import ShardWriter
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.store.layout import MANIFEST
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from amnesia_bench.training.models import Learner
from amnesia_bench.training.objectives import Align
from amnesia_bench.training.processes import Processes
from amnesia_bench.training.sharding import whole
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.side_files import side_files


@dataclass(frozen=True, kw_only=True)
class Export:
    """What goes into the folder besides the trained tensors.

    Tensors of `init` that were not trained, its config and tokenizer are taken over; `side_files`
    of the run are added.
    """

    init: Checkpoint
    parents: tuple[Parent, ...]
    side_files: tuple[Path, ...]
    seed: int


def publish_trained(export: Export, learner: Learner, processes: Processes, out: Path) -> None:
    """Write the checkpoint, whole or not at all; every process must call.

    Trained tensors are rounded to the dtypes that `init` has.

    Raises:
        StageFailedError: a frozen tensor has changed.
    """
    trained = {}
    for name, parameter in learner.trained.items():
        gathered = whole(parameter)
        if processes.first:
            trained[name] = gathered.cpu()
    for name, parameter in learner.untouched.items():
        gathered = whole(parameter)
        if processes.first and not torch.equal(
            gathered.cpu(), _read(export.init, name).to(gathered.dtype)
        ):
            raise StageFailedError(f"{name} was to be frozen and has changed; nothing is published")
    if processes.first:
        kept = set(export.init.tensors)
        if not isinstance(learner.objective, Align):
            # A tied head that was stored a second time would be a stale copy.
            kept &= learner.trained.keys() | learner.untouched.keys()
        _publish(export, {name: trained.get(name) for name in kept}, out)


def _publish(export: Export, tensors: Mapping[str, Tensor | None], out: Path) -> None:
    provenance = collect_provenance(sys.argv, seeds={"training": export.seed})
    with publishing(out, kept="complete saves are kept") as work:
        writer = ShardWriter(work.folder)
        for name, tensor in _tensors(export.init, tensors):
            writer.add(name, tensor)
        writer.close()
        ours = {path.name for path in export.side_files}
        for file in side_files(export.init.folder):
            if file.name != MANIFEST and str(file) not in ours:
                (work.folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(export.init.folder / file, work.folder / file)
        for path in export.side_files:
            shutil.copyfile(path, work.folder / path.name)
        work.finish("trained", export.parents, provenance)


def _tensors(
    init: Checkpoint, tensors: Mapping[str, Tensor | None]
) -> Iterator[tuple[str, Tensor]]:
    """Yield what is published, in the order of `init`; None stands for the tensor in `init`."""
    for name in init.tensors:
        if name in tensors:
            before, after = _read(init, name), tensors[name]
            yield name, before if after is None else after.to(before.dtype)


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    shard, _ = checkpoint.tensors[name]
    with safe_open(checkpoint.folder / shard, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor
