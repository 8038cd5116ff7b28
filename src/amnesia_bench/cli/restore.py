r"""Repair a fine-tuned checkpoint by restoring W_Q and W_K of its softmax layers from the base.

  amnesia restore --pre BASE --post FINETUNE --out REPAIRED
  amnesia restore --pre BASE --post FINETUNE --out REPAIRED --variant qk_blend \
      restore.rule.alpha=0.3
  amnesia restore --pre BASE --post FINETUNE --layers top7 --dry-run
  amnesia restore --pre BASE --post FINETUNE --heads top8@heads.json --out REPAIRED

All other bytes of the checkpoint remain those of POST. The command verifies this by comparing the
written files with POST. Other variants restore other tensors or apply another rule; some combine
all weights of the two checkpoints, as model merging does.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import (
    percent,
    print_json,
    say,
    shortened,
    show,
    size,
    table,
    tell,
    typed,
)
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.printable import counted
from amnesia_bench.records.restoration import EditedTensor, Restoration
from amnesia_bench.requests.checkpoints import RankedHeads, RankedLayers, RestoreRequest

# At most six digits, because no model has more layers and int() rejects strings of thousands of
# digits.
_NUMBER, _COUNT = "[0-9]{1,6}", "[1-9][0-9]{0,5}"
_TOP_OF_FILE = re.compile(rf"top({_COUNT})@(.+)", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pre", type=Path, required=True, help="checkpoint folder before the fine-tune"
    )
    parser.add_argument(
        "--post", type=Path, required=True, help="checkpoint folder after the fine-tune"
    )
    parser.add_argument("--out", type=Path, help="folder to write; must not exist yet")
    parser.add_argument(
        "--variant",
        default="qk",
        help="restore variant: name of a config in configs/restore, or path/to/mine.yaml (qk)",
    )
    parser.add_argument(
        "--layers",
        help="softmax layers to restore: all, a list such as 2,3,6, top7 (the 7 that drifted "
        "most), or top7@FILE (the 7 most important in a ranking of `amnesia rank-layers`)",
    )
    parser.add_argument(
        "--heads",
        metavar="topN@FILE",
        help="restore only the N highest heads in a ranking of `amnesia rank-heads`, each with its "
        "KV head and the query heads that share it",
    )
    parser.add_argument(
        "--measured",
        type=Path,
        metavar="FILE",
        help="file of `amnesia measure`, for the variants that need one (lm_cocktail, step_back, "
        "layer_fisher)",
    )
    parser.add_argument(
        "--cast",
        action="store_true",
        help="round the weights of PRE to the dtype of POST if they differ",
    )
    parser.add_argument(
        "--allow-noop", action="store_true", help="write a copy even if no weight would change"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan and the drift; write nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="override a value of the variant: restore.rule.alpha=0.3, restore.select.heads=[0,1]",
    )


def run(args: argparse.Namespace) -> ExitCode:
    if args.out is None and not args.dry_run:
        raise UserError("--out is missing", hint="--out REPAIRED, or --dry-run to write nothing")
    overrides, ranked = ([], None) if args.layers is None else _layers(args.layers)
    request = make(
        RestoreRequest,
        pre=args.pre,
        post=args.post,
        variant=amnesia_bench.load_variant(args.variant, [*overrides, *args.overrides]),
        ranked_layers=ranked,
        ranked_heads=None if args.heads is None else _heads(args.heads),
        measured=args.measured,
        cast=args.cast,
        allow_noop=args.allow_noop,
    )
    record = amnesia_bench.restore(request, None if args.dry_run else args.out)
    for warning in record.warnings:
        tell(f"note: {warning}")
    if args.json:
        print_json(record)
    else:
        _print(record)
    return ExitCode.DONE


def _layers(text: str) -> tuple[list[str], RankedLayers | None]:
    """Parse --layers; return overrides for the variant, and the ranked layers or None."""
    if text == "all":
        return ["restore.select.layers=all"], None
    if top := re.fullmatch(rf"top({_COUNT})", text):
        return [f"restore.select.layers={{top_drift: {int(top[1])}}}"], None
    if top := _TOP_OF_FILE.fullmatch(text):
        return [], RankedLayers(count=int(top[1]), file=Path(top[2]))
    numbers = [number for number in re.split(r"[,\s]+", text.strip("[] ")) if number]
    if not numbers or not all(re.fullmatch(_NUMBER, number) for number in numbers):
        raise UserError(
            f"--layers {shortened(text)!r}: expected all, a list such as 2,3,6, top7 or top7@FILE"
        )
    return [f"restore.select.layers=[{','.join(str(int(number)) for number in numbers)}]"], None


def _heads(text: str) -> RankedHeads:
    top = _TOP_OF_FILE.fullmatch(text)
    if top is None:
        raise UserError(
            f"--heads {shortened(text)!r}: expected topN@FILE, such as top8@heads.json",
            hint="KV heads by index: restore.select.heads=[0,1]",
        )
    return RankedHeads(count=int(top[1]), file=Path(top[2]))


def _print(record: Restoration) -> None:
    whole = any(tensor.role is None for tensor in record.tensors)
    title = (
        f"{record.variant['name']}: all {len(record.tensors)} weight tensors ({record.family})"
        if whole
        else f"{record.variant['name']}: {counted(len(record.tensors), 'tensor')} in "
        f"{len(record.restored_layers)} of {len(record.softmax_layers)} softmax layers "
        f"({record.family})"
    )
    columns = ("layer", *(("tensors",) if whole else ("role", "tensor", "rows")))
    grid = table(
        title,
        (*columns, "drift in post", "restored", "values changed"),
        left=1 if whole else 3,
    )
    for cells in _layer_rows(record) if whole else _tensor_rows(record):
        grid.add_row(*cells)
    show(grid)
    say("drift = |post - pre| / |pre|, restored = |out - post| / |pre| (Frobenius norm)")
    planned = size(sum(tensor.planned_bytes for tensor in record.tensors))
    if record.proof is None:
        say(f"Dry run: {planned} would be replaced; nothing was written.")
        return
    proof = record.proof
    say(
        f"{record.out}: {planned} replaced, all else equals post byte for byte: "
        f"{counted(len(proof.compared_files), 'shard')} ({size(proof.compared_bytes)}) written and "
        f"compared, {len(proof.linked_files)} ({size(proof.linked_bytes)}) hardlinked."
    )
    say(f"To verify it later: {typed('verify', record.out)}")


def _tensor_rows(record: Restoration) -> Iterator[tuple[str, ...]]:
    for tensor in record.tensors:
        yield (
            str(tensor.layer),
            "" if tensor.role is None else tensor.role.value,
            tensor.name,
            f"{sum(stop - start for start, stop in tensor.rows):,}",
            percent(tensor.relative_drift),
            percent(tensor.relative_repair),
            percent(tensor.changed_values / tensor.values),
        )


def _layer_rows(record: Restoration) -> Iterator[tuple[str, ...]]:
    """Yield one row per layer: a checkpoint has too many tensors for one row each."""
    layers: dict[int | None, list[EditedTensor]] = {}
    for tensor in record.tensors:
        layers.setdefault(tensor.layer, []).append(tensor)
    for layer, tensors in layers.items():
        values = sum(tensor.values for tensor in tensors)
        yield (
            "others" if layer is None else str(layer),
            str(len(tensors)),
            percent(_ratio([(t.norm_post_minus_pre, t.norm_pre) for t in tensors])),
            percent(_ratio([(t.norm_restored_minus_post, t.norm_pre) for t in tensors])),
            percent(sum(tensor.changed_values for tensor in tensors) / values),
        )


def _ratio(norms: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Return the ratio of two norms over several tensors; None if one is not finite, or 0."""
    above, below = (
        math.inf if None in column else math.hypot(*(n for n in column if n is not None))
        for column in zip(*norms, strict=True)
    )
    return above / below if 0 < below < math.inf and above < math.inf else None
