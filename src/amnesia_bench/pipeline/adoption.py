"""Put a checkpoint that was made elsewhere into the store, instead of a stage's artifact."""

from __future__ import annotations

import errno
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from amnesia_bench.config.load import load_model
from amnesia_bench.config.messages import nearest
from amnesia_bench.costs.model_shape import ModelShape, read_model_shape
from amnesia_bench.errors import UserError
from amnesia_bench.hub.repository import check_space
from amnesia_bench.pipeline.adopted import ADOPTED_KIND
from amnesia_bench.pipeline.bookkeeping import FAILURE, write_inputs
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.stage import Stage, closure
from amnesia_bench.requests.checkpoints import ConvertRequest
from amnesia_bench.requests.experiments import AdoptRequest
from amnesia_bench.requests.training import TrainRequest
from amnesia_bench.store.files import make_folder
from amnesia_bench.store.hashing import is_finished
from amnesia_bench.store.layout import MANIFEST, stage_path, store_of
from amnesia_bench.store.lease import holding_lease
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from amnesia_bench.tokenizers.tokenizer import load_tokenizer, tokenizer_identity
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.file_names import INDEX
from amnesia_bench.weights.identity import parent_by_contents
from amnesia_bench.weights.side_files import side_files

_RESTORATION = "restoration.json"
_TOKENIZER = "tokenizer.json"
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP)


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """A checkpoint in the store.

    Attributes:
        stage: the id of the stage whose artifact it is.
        folder: the folder of the artifact.
        identity: the hash of the checkpoint's contents.
        linked_bytes: size of the files that are hard links to the source; other files are copies.
        tokenizer_of: the finished artifact with which the tokenizer was compared; None if the store
            has none of those from which the stage would have its tokenizer.
    """

    stage: str
    folder: Path
    identity: str
    linked_bytes: int
    tokenizer_of: Path | None


def adopt(request: AdoptRequest) -> Adopted:
    """Put a checkpoint into the store as the artifact of a stage, complete or not at all.

    The stage then counts as done, and `run` runs none of the stages that only it needs. Weights
    become hard links to the checkpoint's if both are on one file system, else copies. Every file is
    hashed; the manifest names the source.

    Raises:
        UserError: no stage or several stages have the name, the stage is done already, or the
            checkpoint is incomplete or has another shape or tokenizer than the stage's.
        BusyError: another process is running the stage.
        StageFailedError: the disk is too small, or the checkpoint changed during the call.
    """
    store = store_of(request.store)
    stage = _named(request.stage, stages_of(graphs_of(request.overrides)))
    final = stage.folder(store)
    if is_finished(final):
        raise UserError(
            f"{stage.id}: is done already in {store}; nothing was written",
            hint=f"To replace it, remove it first: rm -r {final}",
        )
    checkpoint = open_checkpoint(request.checkpoint.resolve())
    _check_shape(checkpoint, stage)
    names = _side_files(checkpoint, stage)
    compared = _check_tokenizer(checkpoint, stage, store)
    provenance = collect_provenance(sys.argv, seeds={})
    make_folder(store / "stages")
    with holding_lease(stage_path(store, stage.id)), publishing(final) as work:
        parent = parent_by_contents("checkpoint", checkpoint, names)
        linked_bytes = _copy(checkpoint, names, work.folder)
        checkpoint.held.check()
        # An earlier attempt to run the stage may have recorded inputs or a failure.
        write_inputs(store, stage.id, {})
        (stage_path(store, stage.id) / FAILURE).unlink(missing_ok=True)
        work.finish(ADOPTED_KIND, [parent], provenance)
    return Adopted(
        stage=stage.id,
        folder=final,
        identity=parent.identity,
        linked_bytes=linked_bytes,
        tokenizer_of=compared,
    )


def _named(name: str, stages: Sequence[Stage]) -> Stage:
    """Return the stage with a name, an id, or an id without its hash, that makes a checkpoint."""
    candidates = [stage for stage in stages if stage.shape is not None]
    matches = [s for s in candidates if name in (s.id, s.id.rpartition("-")[0], s.name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        ids = "\n".join(f"  {stage.id}" for stage in matches)
        raise UserError(f"--as {name}: {len(matches)} stages have this name", hint=f"One of\n{ids}")
    known = sorted({stage.name for stage in candidates})
    raise UserError(
        f"--as {name}: no such stage that makes a checkpoint in these experiments",
        hint=nearest(name, known),
    )


def _expected_config(stage: Stage) -> Mapping[str, object]:
    """Return the config of a stage's checkpoint, with the keys that determine shapes."""
    assert stage.shape is not None
    values = dict(load_model(stage.shape).values)
    request = stage.request
    is_student = (isinstance(request, ConvertRequest) and request.stage == 1) or (
        isinstance(request, TrainRequest) and request.run.train.objective == "align"
    )
    if is_student:  # in stage 1, all layers are linear
        values["mixer_types"] = ["lightning-attn"] * int(str(values["num_hidden_layers"]))
    return values


def _check_shape(checkpoint: Checkpoint, stage: Stage) -> None:
    """Compare the config and the headers of a checkpoint with the shape of a stage's checkpoint.

    Raises:
        UserError: they differ; the message names the first difference.
    """
    where, expected_config = checkpoint.folder, _expected_config(stage)
    if any(read.kind == "selection" for read in closure([stage])):
        # Which layers are softmax layers is not known before; their number is.
        own, planned = checkpoint.config.get("mixer_types"), expected_config["mixer_types"]
        if isinstance(own, list) and isinstance(planned, list) and sorted(own) == sorted(planned):
            expected_config = {**expected_config, "mixer_types": own}
    wanted = f"configs/model/{stage.shape}, the shape of {stage.name}"
    for key in ("model_type", "mixer_types", "layer_types"):
        own, other = checkpoint.config.get(key), expected_config.get(key)
        if other is not None and own != other and (own is not None or key == "model_type"):
            raise UserError(f"{where}: {key} is {own}, but {other} in {wanted}")
    expected, actual = read_model_shape(expected_config), read_model_shape(checkpoint.config)
    for name, value in asdict(expected).items():
        if asdict(actual)[name] != value:
            raise UserError(f"{where}: {name} is {asdict(actual)[name]}, but {value} in {wanted}")
    if expected.softmax_layers:
        try:
            attention_map(expected_config, checkpoint.shapes)
        except UserError as error:
            raise UserError(f"{where}: does not fit {wanted}: {error.what}") from None
    _check_parameters(checkpoint, expected, wanted)


def _check_parameters(checkpoint: Checkpoint, expected: ModelShape, wanted: str) -> None:
    stored = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    # A tied head may be stored a second time.
    allowed = {expected.parameters, expected.body + 2 * expected.embedding}
    if stored not in allowed:
        raise UserError(
            f"{checkpoint.folder}: has {stored:,} parameters, but {wanted}, has "
            f"{expected.parameters:,}",
            hint="Is it complete? Merge adapters first, and remove additional heads.",
        )


def _side_files(checkpoint: Checkpoint, stage: Stage) -> list[str]:
    """Return the names of the files to adopt in addition to the weights."""
    folder = checkpoint.folder
    names = [str(path) for path in side_files(folder) if str(path) != MANIFEST]
    names += [INDEX] if (folder / INDEX).exists() else []
    if stage.kind == "restored" and _RESTORATION not in names:
        raise UserError(
            f"{folder}: has no {_RESTORATION}, from which reports read the drift",
            hint="Give a folder that `amnesia restore` wrote, or adopt its --pre and --post.",
        )
    return names


def _check_tokenizer(checkpoint: Checkpoint, stage: Stage, store: Path) -> Path | None:
    """Compare the tokenizer of a checkpoint with one in the store from which the stage is made.

    Returns:
        The artifact with that tokenizer; None if the store has none yet.
    """
    identity = tokenizer_identity(load_tokenizer(checkpoint.folder))
    for other in closure([stage]):
        folder = other.folder(store)
        if is_finished(folder) and (folder / _TOKENIZER).is_file():
            if tokenizer_identity(load_tokenizer(folder)) != identity:
                raise UserError(
                    f"{checkpoint.folder}: its tokenizer differs from that of {folder}",
                    hint="Stages that read both would count tokens differently.",
                )
            return folder
    return None


def _copy(checkpoint: Checkpoint, names: Sequence[str], out: Path) -> int:
    """Copy side files, and link weights or copy them; return the number of linked bytes."""
    sources = {name: header.path.resolve() for name, header in checkpoint.shards.items()}
    linked_bytes, to_copy = 0, {name: checkpoint.folder / name for name in names}
    for name, source in sources.items():
        try:
            os.link(source, out / name)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            to_copy[name] = source
        else:
            linked_bytes += source.stat().st_size
    needed = sum(source.stat().st_size for source in to_copy.values())
    check_space(needed, out, str(out.parent), "Free some space, or choose another --store.")
    for name, source in to_copy.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / name)
    return linked_bytes
