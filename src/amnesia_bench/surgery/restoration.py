"""Run QK-Restore on two checkpoint folders (paper section 5.2, Algorithm 1).

The stages are: check, plan, compute, write, verify, publish. The folders of pre and post are only
read; the result is a new folder in post's format.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench import __version__
from amnesia_bench.config.schema import TopDrift, Variant
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import FileEntry
from amnesia_bench.records.restoration import Proof, Restoration
from amnesia_bench.records.roles import AttentionMap, LayerKind, Role
from amnesia_bench.requests.checkpoints import RestoreRequest
from amnesia_bench.store.files import write_json
from amnesia_bench.store.hashing import file_entry, sha256_of
from amnesia_bench.store.held_files import HeldFiles
from amnesia_bench.store.layout import MANIFEST
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from amnesia_bench.surgery.compat import check_compatible, check_dtypes
from amnesia_bench.surgery.edits import Edits, compute_edits, measure_drift
from amnesia_bench.surgery.layer_values import Pair
from amnesia_bench.surgery.pairing import notes_on_others, pair_tensors, with_post_names
from amnesia_bench.surgery.plan import LayerPlan, candidate_layers, make_plan
from amnesia_bench.surgery.ranked_layers import top_layers
from amnesia_bench.surgery.shards import WrittenShard, bytes_to_copy, check_tensors, write_shards
from amnesia_bench.weights.attention_map import ROUTING, attention_map
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.file_names import ADAPTER_CONFIG, INDEX
from amnesia_bench.weights.folder_kinds import merge_command
from amnesia_bench.weights.identity import as_parent, identify
from amnesia_bench.weights.quantisation import (
    note_on_config,
    quantisation_evidence,
    quantised_weights_error,
    refuse_quantised,
)
from amnesia_bench.weights.side_files import LeftOut, left_out, side_files

RESTORATION = "restoration.json"
RESTORED = "restored"  # the artifact kind in the manifest
SPOOL = ".edits"
SCHEMA_VERSION = 1
OWN_RECORDS = (MANIFEST, RESTORATION)  # not copied from a post that is an artifact


def restore(request: RestoreRequest, out: Path | None) -> Restoration:
    """Write a copy of post in which the tensors that the variant selects are restored from pre.

    All other tensors, the config, the tokenizer and any remote code come from post.

    Args:
        request: the two checkpoints and the variant to apply.
        out: the folder to create; if None, the restore is only planned and nothing is written.

    Returns:
        The record of the restore, which is also written to out/restoration.json. If the restore
        was only planned, `out` and `proof` of the record are None.

    Raises:
        UserError: the two checkpoints do not match, the restore would change nothing, or `out`
            exists or is inside pre or post.
        StageFailedError: the disk is full, a byte that was read back differs from the one written,
            or a file of pre or post changed during the restore.
        BusyError: another process is writing `out`.
    """
    job = _prepare(request)
    if out is None:
        with job.unchanged():
            return _record(job, _edits(job, Path(os.devnull)))
    _check_out(out, job.pair)
    provenance = collect_provenance(sys.argv, seeds={})
    with publishing(out) as work:
        with job.unchanged():
            record, entries = _write_contents(job, work.folder, out)
        parents = (
            as_parent("pre", record.pre, {t.name: t.sha256_pre for t in record.tensors}),
            as_parent("post", record.post, {t.name: t.sha256_post for t in record.tensors}),
        )
        work.finish(RESTORED, parents, provenance, entries)
    return record


@dataclass(frozen=True, kw_only=True)
class _Job:
    request: RestoreRequest
    pair: Pair
    variant: Variant
    plans: tuple[LayerPlan, ...]
    side_files: tuple[str, ...]
    left_out: LeftOut
    warnings: tuple[str, ...]
    held: HeldFiles

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Check, when the block ends, that no file of pre or post changed since it was opened.

        Raises:
            StageFailedError: a file was changed or removed; the message names it.
        """
        try:
            yield
        except FileNotFoundError:
            self.held.check()
            raise
        self.held.check()


def _prepare(request: RestoreRequest) -> _Job:
    variant = request.variant
    if request.ranked_layers is not None:
        select = variant.select.model_copy(update={"layers": top_layers(request.ranked_layers)})
        variant = variant.model_copy(update={"select": select})
    pre, post = request.pre, request.post
    checkpoints = open_checkpoint(pre), open_checkpoint(post)
    roles = {*ROUTING, *variant.select.roles}
    maps = _map_of(checkpoints[0], roles), _map_of(checkpoints[1], roles)
    config_notes = [note for note in map(note_on_config, checkpoints) if note is not None]
    notes = [*config_notes, *check_compatible(*checkpoints, maps, roles)]
    pairing = pair_tensors(*checkpoints, maps)
    pair = Pair(
        pre=with_post_names(checkpoints[0], pairing), post=checkpoints[1], attention=maps[1]
    )
    side_file_names = [str(path) for path in side_files(post) if str(path) not in OWN_RECORDS]
    side_file_names += [INDEX] if (post / INDEX).exists() else []
    side_files_held = HeldFiles.hold(post / name for name in side_file_names)
    left_out_files = left_out(post, [*side_file_names, *pair.post.shards, *OWN_RECORDS])
    layers = candidate_layers(variant.select, pair.attention)
    plans = make_plan(variant.select, pair.attention, pair.post, layers)
    planned = [tensor.name for plan in plans for tensor in plan.tensors]
    for checkpoint in (pair.pre, pair.post):
        refuse_quantised(checkpoint, planned)
    if not request.cast:
        check_dtypes(pair.pre, pair.post, planned)
    notes += notes_on_others(pair.pre, pair.post, pairing, set(planned))
    if isinstance(variant.select.layers, TopDrift):
        drift = measure_drift(pair, plans)
        keep = sorted(drift, key=lambda layer: -drift[layer])[: variant.select.layers.top_drift]
        plans = tuple(plan for plan in plans if plan.layer in keep)
    return _Job(
        request=request,
        pair=pair,
        variant=variant,
        plans=plans,
        side_files=tuple(side_file_names),
        left_out=left_out_files,
        warnings=(*_warnings(variant, pair, plans, left_out_files), *notes),
        held=sum((checkpoint.held for checkpoint in checkpoints), side_files_held),
    )


def _map_of(checkpoint: Checkpoint, roles: Collection[Role]) -> AttentionMap:
    try:
        return attention_map(checkpoint.config, checkpoint.shapes, roles)
    except UserError as error:  # `attention_map` does not know the folder
        if (evidence := quantisation_evidence(checkpoint)) is not None:
            raise quantised_weights_error(checkpoint, evidence) from error
        raise UserError(f"{checkpoint.folder}: {error.what}", hint=error.hint) from None


def _warnings(
    variant: Variant, pair: Pair, plans: Sequence[LayerPlan], left_out_files: LeftOut
) -> tuple[str, ...]:
    kinds = pair.attention.layer_kinds
    warnings = []
    if (pair.post.folder / ADAPTER_CONFIG).exists():
        warnings.append(
            f"{pair.post.folder}: holds full weights and an adapter. The adapter is assumed to be "
            "merged already and is not copied."
        )
    if LayerKind.LINEAR not in kinds and len(plans) == len(kinds):
        warnings.append(
            f"All {len(kinds)} layers of this model are softmax attention, and all are restored. "
            "In such models the paper restores only the 7 to 9 layers that matter most for "
            "retrieval (App. L and M); see --layers."
        )
    sliding = pair.attention.layers(LayerKind.SLIDING)
    if sliding and not variant.select.include_sliding:
        warnings.append(
            f"Layers {', '.join(map(str, sliding))} attend over a sliding window and are not "
            "restored; restore.select.include_sliding=true restores them too."
        )
    if left_out_files.files:
        warnings.append(f"Not copied from post: {left_out_files.described()}")
    return tuple(warnings)


def _write_contents(job: _Job, work: Path, out: Path) -> tuple[Restoration, tuple[FileEntry, ...]]:
    """Write all files except the manifest to `work`; return the record and the file entries."""
    post = job.pair.post
    edits = _edits(job, work / SPOOL)
    _check_space(job, edits, work)
    shards = write_shards(post, edits, work)
    check_tensors(post, edits, work)
    edits.spool.unlink()
    for name in job.side_files:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        # copyfile follows links, so `out` gets regular files.
        shutil.copyfile(post.folder / name, work / name)
    record = replace(
        _record(job, edits),
        out=str(out),
        proof=_proof(job, edits, shards),
    )
    write_json(work / RESTORATION, codec.to_json(record))
    hashed = {shard.name: shard.sha256 for shard in shards} | {
        name: sha256_of(work / name) for name in (*job.side_files, RESTORATION)
    }
    # A later write through a hard link changes the mtime, so the file no longer matches its entry.
    return record, tuple(file_entry(work, name, sha256=sha) for name, sha in hashed.items())


def _edits(job: _Job, spool: Path) -> Edits:
    edits = compute_edits(job.pair, job.plans, job.variant.rule, spool)
    if edits.changes_nothing and not job.request.allow_noop:
        post = job.pair.post.folder
        merge_hint = (
            "Its adapter is not merged into its weights. With peft installed:\n"
            f"{merge_command(post)}\n"
            if (post / ADAPTER_CONFIG).exists()
            else ""
        )
        raise UserError(
            f"Nothing to do: {job.variant.name!r} changes no bit of {job.pair.post.folder}; "
            f"the planned tensors are already those of {job.pair.pre.folder}.",
            hint=f"{merge_hint}Check --pre and --post, or write a copy anyway with --allow-noop.",
        )
    return edits


def _check_out(out: Path, pair: Pair) -> None:
    target = out.absolute().resolve()
    for checkpoint in (pair.pre, pair.post):
        if target.is_relative_to(checkpoint.folder.resolve()):
            raise UserError(
                f"{out}: is inside {checkpoint.folder}, which a restore only reads.",
                hint="Choose a folder outside it.",
            )


def _check_space(job: _Job, edits: Edits, work: Path) -> None:
    post = job.pair.post
    needed = bytes_to_copy([h.path for h in post.shards.values()], edits, work)
    needed += sum((post.folder / name).stat().st_size for name in job.side_files)
    free = shutil.disk_usage(work).free
    if needed > free:
        raise StageFailedError(
            f"{work.parent}: {needed:,} bytes are needed and {free:,} are free; nothing was "
            "written.",
            hint="Free some space, or choose another --out.",
        )


def _record(job: _Job, edits: Edits) -> Restoration:
    return Restoration(
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        variant=job.variant.model_dump(mode="json"),
        family=job.pair.attention.family,
        softmax_layers=job.pair.attention.layers(LayerKind.FULL, LayerKind.SLIDING),
        restored_layers=tuple(plan.layer for plan in job.plans),
        pre=identify(job.pair.pre),
        post=identify(job.pair.post),
        out=None,
        cast=job.request.cast,
        tensors=edits.tensors,
        left_out=job.left_out.names,
        warnings=job.warnings,
        proof=None,
    )


def _proof(job: _Job, edits: Edits, shards: Sequence[WrittenShard]) -> Proof:
    compared = [shard for shard in shards if shard.sha256 is not None]
    hardlinked = [shard for shard in shards if shard.sha256 is None]
    return Proof(
        compared_files=tuple(shard.name for shard in compared),
        linked_files=tuple(shard.name for shard in hardlinked),
        compared_bytes=sum(shard.num_bytes for shard in compared),
        linked_bytes=sum(shard.num_bytes for shard in hardlinked),
        planned_bytes=sum(tensor.planned_bytes for tensor in edits.tensors),
        planned_tensors=len(edits.tensors),
        untouched_tensors=len(job.pair.post.tensors) - len({t.name for t in edits.tensors}),
    )
