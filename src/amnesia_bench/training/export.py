"""Publish the trained model as a checkpoint in the official format, with its provenance."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from amnesia_bench.errors import StageFailedError
from amnesia_bench.modeling.shard_writer import ShardWriter
from amnesia_bench.records.artifacts import Parent, Provenance
from amnesia_bench.store.layout import MANIFEST
from amnesia_bench.store.publish import publishing
from amnesia_bench.training.models import Learner
from amnesia_bench.training.objectives import Align
from amnesia_bench.training.processes import Processes
from amnesia_bench.training.recorder import recorded_seconds
from amnesia_bench.training.sharding import whole
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.side_files import side_files


@dataclass(frozen=True, kw_only=True)
class Export:
    """The sources of the published checkpoint apart from the trained tensors.

    Untrained tensors, config and tokenizer are copied from `init`; the `side_files`, which the run
    wrote, are added. `parents` and `provenance` go into the manifest, with the seconds of all steps
    that are in the file `speed`.
    """

    init: Checkpoint
    parents: tuple[Parent, ...]
    side_files: tuple[Path, ...]
    speed: Path
    provenance: Provenance


def publish_trained(export: Export, learner: Learner, processes: Processes, out: Path) -> None:
    """Publish the trained model as a checkpoint; every process must call this function.

    Trained tensors are rounded to their dtypes in `init`.

    Raises:
        StageFailedError: a frozen tensor has changed.
    """
    trained, changed = {}, []
    for name, parameter in learner.trained.items():
        gathered = whole(parameter)
        if processes.first:
            trained[name] = gathered.cpu()
    for name, parameter in learner.untouched.items():
        gathered = whole(parameter)
        if processes.first and not torch.equal(
            gathered.cpu(), _read(export.init, name).to(gathered.dtype)
        ):
            changed.append(name)
    names = set(export.init.tensors)
    if not isinstance(learner.objective, Align):
        # If `init` stores a second copy of a tied head, that copy is no longer correct.
        names &= learner.trained.keys() | learner.untouched.keys()

    def publish() -> None:
        if changed:
            raise StageFailedError(
                f"{changed[0]} is frozen, but it has changed; nothing is published"
            )
        _publish(export, {name: trained.get(name) for name in names}, out)

    # The others wait, since leaving the process group has a time limit.
    processes.on_first(publish)


def _publish(export: Export, tensors: Mapping[str, Tensor | None], out: Path) -> None:
    provenance = replace(export.provenance, training_seconds=recorded_seconds(export.speed))
    with publishing(out, kept="complete checkpoints are kept") as work:
        writer = ShardWriter(work.folder)
        for name, tensor in _tensors(export.init, tensors):
            writer.add(name, tensor)
        writer.close()
        run_files = {path.name for path in export.side_files}
        for file in side_files(export.init.folder):
            if file.name != MANIFEST and str(file) not in run_files:
                (work.folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(export.init.folder / file, work.folder / file)
        for path in export.side_files:
            shutil.copyfile(path, work.folder / path.name)
        work.finish("trained", export.parents, provenance)


def _tensors(
    init: Checkpoint, tensors: Mapping[str, Tensor | None]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors to publish in the order of `init`; None stands for the tensor in `init`."""
    for name in init.tensors:
        if name in tensors:
            before, after = _read(init, name), tensors[name]
            yield name, before if after is None else after.to(before.dtype)


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    shard, _ = checkpoint.tensors[name]
    with safe_open(checkpoint.folder / shard, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor
