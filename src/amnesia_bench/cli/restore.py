r"""Repair a fine-tuned checkpoint by restoring W_Q and W_K of its softmax layers from the base.

  amnesia restore --pre BASE --post FINETUNE --out REPAIRED
  amnesia restore --pre BASE --post FINETUNE --out REPAIRED --variant qk_blend \
      restore.rule.alpha=0.3
  amnesia restore --pre BASE --post FINETUNE --layers top7 --dry-run

All other bytes of the checkpoint remain those of POST. The command verifies this by comparing the
written files with POST. Other variants restore other tensors or apply another rule.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import (
    counted,
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
from amnesia_bench.records.restoration import Restoration
from amnesia_bench.requests.checkpoints import RankedLayers, RestoreRequest

# At most six digits, because no model has more layers and int() rejects strings of thousands of
# digits.
_NUMBER, _COUNT = "[0-9]{1,6}", "[1-9][0-9]{0,5}"


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
    if top := re.fullmatch(rf"top({_COUNT})@(.+)", text, re.DOTALL):
        return [], RankedLayers(count=int(top[1]), file=Path(top[2]))
    numbers = [number for number in re.split(r"[,\s]+", text.strip("[] ")) if number]
    if not numbers or not all(re.fullmatch(_NUMBER, number) for number in numbers):
        raise UserError(
            f"--layers {shortened(text)!r}: expected all, a list such as 2,3,6, top7 or top7@FILE"
        )
    return [f"restore.select.layers=[{','.join(str(int(number)) for number in numbers)}]"], None


def _print(record: Restoration) -> None:
    grid = table(
        f"{record.variant['name']}: {len(record.tensors)} tensors in "
        f"{len(record.restored_layers)} of {len(record.softmax_layers)} softmax layers "
        f"({record.family})",
        ("layer", "role", "tensor", "rows", "drift in post", "restored", "values changed"),
        left=3,
    )
    for tensor in record.tensors:
        grid.add_row(
            str(tensor.layer),
            tensor.role.value,
            tensor.name,
            f"{sum(stop - start for start, stop in tensor.rows):,}",
            percent(tensor.relative_drift),
            percent(tensor.relative_repair),
            percent(tensor.changed_values / tensor.values),
        )
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
