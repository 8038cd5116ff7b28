"""Run QK-Restore on two checkpoint folders (paper section 5.2, Algorithm 1).

The stages are: check, plan, compute, write, verify, publish. The folders of pre and post are only
read; the result is a new folder in post's format.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from amnesia_bench import __version__
from amnesia_bench.config.schema import Blend, RoleBlend, TopDrift, Variant
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
from amnesia_bench.surgery.edits import ApplicableRule, Edits, compute_edits, measure_drift
from amnesia_bench.surgery.layer_values import Pair
from amnesia_bench.surgery.measured import applicable_rule, measured_values
from amnesia_bench.surgery.model_card import card_name, licence_warning, model_card
from amnesia_bench.surgery.pairing import (
    check_all_weights,
    notes_on_others,
    pair_tensors,
    with_post_names,
)
from amnesia_bench.surgery.plan import (
    LayerPlan,
    candidate_layers,
    divided_by_role,
    make_plan,
    plan_whole_checkpoint,
)
from amnesia_bench.surgery.ranked_heads import select_ranked_heads
from amnesia_bench.surgery.ranked_layers import top_layers
from amnesia_bench.surgery.restore_warnings import restore_warnings
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


def restore(
    request: RestoreRequest,
    out: Path | None,
    *,
    attached: Mapping[str, str] = MappingProxyType({}),
    results: str | None = None,
) -> Restoration:
    """Write a copy of post in which the tensors that the variant selects are restored from pre.

    All other tensors, the config, the tokenizer and any remote code come from post.

    Args:
        request: the two checkpoints and the variant to apply.
        out: the folder to create; if None, the restore is only planned and nothing is written.
        attached: the texts of further files to write into `out`, by name.
        results: Markdown for the model card about the measured recall and reasoning of the result.

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
    job = prepare_restore(request)
    if out is None:
        with job.unchanged():
            return _record(job, _edits(job, Path(os.devnull)))
    check_restore_target(out, job.pair)
    provenance = collect_provenance(sys.argv, seeds={})
    with publishing(out) as work:
        with job.unchanged():
            record, entries = _write_contents(job, work.folder, out, (attached, results))
        parents = (
            as_parent("pre", record.pre, {t.name: t.sha256_pre for t in record.tensors}),
            as_parent("post", record.post, {t.name: t.sha256_post for t in record.tensors}),
        )
        work.finish(RESTORED, parents, provenance, entries)
    return record


@dataclass(frozen=True, kw_only=True)
class RestoreJob:
    """A restore that was checked and planned, but not computed."""

    request: RestoreRequest
    pair: Pair
    variant: Variant
    rule: ApplicableRule
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


def prepare_restore(request: RestoreRequest) -> RestoreJob:
    """Check that two checkpoints match, and plan which rows of which tensors are restored.

    Raises:
        UserError: see `restore`.
    """
    variant = request.variant
    if request.ranked_layers is not None:
        select = variant.select.model_copy(update={"layers": top_layers(request.ranked_layers)})
        variant = variant.model_copy(update={"select": select})
    pre, post = request.pre, request.post
    checkpoints = open_checkpoint(pre), open_checkpoint(post)
    roles = {*ROUTING, *variant.select.listed_roles}
    maps = _map_of(checkpoints[0], roles), _map_of(checkpoints[1], roles)
    config_notes = [note for note in map(note_on_config, checkpoints) if note is not None]
    notes = [*config_notes, *check_compatible(*checkpoints, maps, roles)]
    pairing = pair_tensors(*checkpoints, maps)
    pair = Pair(
        pre=with_post_names(checkpoints[0], pairing), post=checkpoints[1], attention=maps[1]
    )
    if request.ranked_heads is not None:
        select, note = select_ranked_heads(
            variant.select, request.ranked_heads, checkpoints, pair.attention
        )
        variant = variant.model_copy(update={"select": select})
        notes.append(note)
    side_file_names = [str(path) for path in side_files(post) if str(path) not in OWN_RECORDS]
    side_file_names += [INDEX] if (post / INDEX).exists() else []
    side_files_held = HeldFiles.hold(post / name for name in side_file_names)
    left_out_files = left_out(post, [*side_file_names, *pair.post.shards, *OWN_RECORDS])
    plans = _plans(pair, variant)
    planned = [tensor.name for plan in plans for tensor in plan.tensors]
    for checkpoint in (pair.pre, pair.post):
        refuse_quantised(checkpoint, planned)
    if not request.cast:
        check_dtypes(pair.pre, pair.post, planned)
    if (warning := licence_warning(pre, post)) is not None:
        notes.append(warning)
    notes += notes_on_others(pair.pre, pair.post, pairing, set(planned))
    if isinstance(variant.select.layers, TopDrift):
        drift = measure_drift(pair, plans)
        keep = sorted(drift, key=lambda layer: -drift[layer])[: variant.select.layers.top_drift]
        plans = tuple(plan for plan in plans if plan.layer in keep)
    return RestoreJob(
        request=request,
        pair=pair,
        variant=variant,
        rule=applicable_rule(request, variant, checkpoints, plans),
        plans=plans,
        side_files=tuple(side_file_names),
        left_out=left_out_files,
        warnings=(*restore_warnings(variant, pair, plans, left_out_files), *notes),
        held=sum((checkpoint.held for checkpoint in checkpoints), side_files_held),
    )


def _plans(pair: Pair, variant: Variant) -> tuple[LayerPlan, ...]:
    if not variant.select.whole_checkpoint:
        layers = candidate_layers(variant.select, pair.attention)
        return make_plan(variant.select, pair.attention, pair.post, layers)
    for checkpoint in (pair.pre, pair.post):
        if (evidence := quantisation_evidence(checkpoint)) is not None:
            raise quantised_weights_error(checkpoint, evidence)
    plans = plan_whole_checkpoint(pair.attention, pair.post)
    names = [tensor.name for plan in plans for tensor in plan.tensors]
    check_all_weights(pair.pre, pair.post, names)
    if isinstance(variant.rule, RoleBlend):
        return divided_by_role(plans, pair.attention, pair.post)
    return plans


def _map_of(checkpoint: Checkpoint, roles: Collection[Role]) -> AttentionMap:
    try:
        return attention_map(checkpoint.config, checkpoint.shapes, roles)
    except UserError as error:  # `attention_map` does not know the folder
        if (evidence := quantisation_evidence(checkpoint)) is not None:
            raise quantised_weights_error(checkpoint, evidence) from error
        raise UserError(f"{checkpoint.folder}: {error.what}", hint=error.hint) from None


def _write_contents(
    job: RestoreJob, work: Path, out: Path, extras: tuple[Mapping[str, str], str | None]
) -> tuple[Restoration, tuple[FileEntry, ...]]:
    """Write all files except the manifest to `work`; return the record and the file entries.

    `extras` are the files to attach, and the results for the model card.
    """
    attached, results = extras
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
    for name, text in attached.items():
        (work / name).write_text(text, encoding="utf-8")
    written = list(dict.fromkeys((*job.side_files, RESTORATION, *attached)))
    if (card := card_name(written)) is not None:
        text = model_card(record, job.request.pre, job.request.post, results)
        (work / card).write_text(text, encoding="utf-8")
        written.append(card)
    hashed = {shard.name: shard.sha256 for shard in shards} | {
        name: sha256_of(work / name) for name in written
    }
    # A later write through a hard link changes the mtime, so the file no longer matches its entry.
    return record, tuple(file_entry(work, name, sha256=sha) for name, sha in hashed.items())


def _edits(job: RestoreJob, spool: Path) -> Edits:
    edits = compute_edits(job.pair, job.plans, job.rule, spool)
    if edits.changes_nothing and not job.request.allow_noop:
        post = job.pair.post.folder
        merge_hint = (
            "Its adapter is not merged into its weights. With peft installed:\n"
            f"{merge_command(post)}\n"
            if (post / ADAPTER_CONFIG).exists()
            else ""
        )
        pre = job.pair.pre.folder
        reason = f"the planned tensors are already those of {pre}"
        if isinstance(job.rule, Blend) and job.rule.alpha == 0:
            reason = f"its alpha, the share of {pre}, is 0"
        raise UserError(
            f"Nothing to do: {job.variant.name!r} changes no bit of {post}; {reason}.",
            hint=f"{merge_hint}Check --pre and --post, or write a copy anyway with --allow-noop.",
        )
    return edits


def check_restore_target(out: Path, pair: Pair) -> None:
    """Raise UserError if `out` is inside pre or post."""
    target = out.absolute().resolve()
    for checkpoint in (pair.pre, pair.post):
        if target.is_relative_to(checkpoint.folder.resolve()):
            raise UserError(
                f"{out}: is inside {checkpoint.folder}, which a restore only reads.",
                hint="Choose a folder outside it.",
            )


def _check_space(job: RestoreJob, edits: Edits, work: Path) -> None:
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


def _record(job: RestoreJob, edits: Edits) -> Restoration:
    return Restoration(
        schema_version=SCHEMA_VERSION,
        tool_version=__version__,
        variant=job.variant.model_dump(mode="json") | measured_values(job.request, job.rule),
        family=job.pair.attention.family,
        softmax_layers=job.pair.attention.layers(LayerKind.FULL, LayerKind.SLIDING),
        restored_layers=tuple(plan.layer for plan in job.plans if plan.layer is not None),
        pre=identify(job.pair.pre),
        post=identify(job.pair.post),
        out=None,
        cast=job.request.cast,
        tensors=edits.tensors,
        left_out=job.left_out.names,
        warnings=job.warnings,
        proof=None,
    )


def _proof(job: RestoreJob, edits: Edits, shards: Sequence[WrittenShard]) -> Proof:
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
