r"""Rank attention heads by how much of the answer they copy from a needle (retrieval heads).

  amnesia rank-heads --checkpoint BASE --prompts prompts --samples 10 --out heads.json
  amnesia rank-heads --checkpoint BASE --post FINETUNE --prompts prompts --out heads.json
  amnesia restore --pre BASE --post FINETUNE --heads top8@heads.json --out REPAIRED

The model reads every prompt of --prompts, which `amnesia niah build` wrote, followed by the correct
answer. The score of a head is the share of the answer's tokens that it copies: at the position
before the token, its largest attention weight is on the same token in the needle (arXiv
2404.15574).
With --post, the command also compares the scores with the drift of W_Q and W_K of each head.
To resume an interrupted ranking, run the same command again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.niah_options import lengths_of, split_list
from amnesia_bench.cli.output import percent, say, show, table, typed
from amnesia_bench.cli.progress import TerminalProgress, hide_library_bars
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.records.head_ranking import DriftOverlap, HeadRanking
from amnesia_bench.requests.recall import RankHeadsRequest

_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="DIR", help="folder of NIAH prompts"
    )
    parser.add_argument(
        "--post", type=Path, metavar="DIR", help="a fine-tune, to compare scores with its drift"
    )
    parser.add_argument(
        "--tasks", help="use only these tasks of --prompts, with one needle each (all)"
    )
    parser.add_argument("--lengths", help="use only these lengths of --prompts, in tokens (all)")
    parser.add_argument("--samples", type=int, help="number of prompts per task and length (all)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")


def run(args: argparse.Namespace) -> ExitCode:
    request = make(
        RankHeadsRequest,
        checkpoint=args.checkpoint,
        prompts=args.prompts,
        post=args.post,
        tasks=None if args.tasks is None else split_list(args.tasks),
        lengths=None if args.lengths is None else lengths_of(args.lengths),
        samples=args.samples,
    )
    hide_library_bars()
    with TerminalProgress("prompts") as progress:
        ranking = amnesia_bench.rank_heads(
            request, args.out, progress=progress.say, count=progress.count
        )
    _print(ranking, args.out)
    return ExitCode.DONE


def _print(ranking: HeadRanking, out: Path) -> None:
    columns = ("head", "KV head", "score", "95 % interval")
    drift = () if ranking.post is None else ("drift of W_Q", "drift of W_K")
    grid = table(ranking.checkpoint.location, (*columns, *drift))
    copying = [entry for entry in ranking.heads if entry.score > 0]
    for entry in copying[:_SHOWN]:
        interval = f"{entry.interval.low:.2f} to {entry.interval.high:.2f}"
        cells = (f"{entry.layer}.{entry.head}", str(entry.kv_head), f"{entry.score:.2f}", interval)
        drifts = (percent(entry.drift_q), percent(entry.drift_k)) if drift else ()
        grid.add_row(*cells, *drifts)
    show(grid)
    say(
        f"A head is named layer.head. {len(copying)} of {len(ranking.heads)} heads copy something "
        f"from a needle. n = {ranking.n} prompts, of which the model recalls {ranking.recalled}."
    )
    for overlap in ranking.overlaps:
        say(_sentence(overlap))
    say(f"{out}: all heads")
    if copying:
        count = min(len(copying), 8)
        say(f"To restore the first {count}: {typed('restore', '--heads', f'top{count}@{out}')} ...")


def _sentence(overlap: DriftOverlap) -> str:
    name = f"W_{overlap.role.upper()}"
    heads = "heads" if overlap.role == "q" else "KV heads"
    if overlap.correlation is None or overlap.interval is None:
        sentence = f"{name}: scores or drifts are all equal, so they have no rank correlation."
    else:
        low, high = overlap.interval.low, overlap.interval.high
        sentence = (
            f"{name}: rank correlation of score and drift {overlap.correlation:+.2f} "
            f"({low:+.2f} to {high:+.2f}; n = {overlap.n} {heads})."
        )
    if overlap.common is None:
        return f"{sentence} {overlap.top} {heads} have a score of at least {overlap.threshold}."
    return (
        f"{sentence} Of the {overlap.top} {heads} that drifted most, {overlap.common:.3g} are "
        f"among the {overlap.top} with a score of at least {overlap.threshold}; by chance "
        f"{overlap.expected:.2f} would be (p = {overlap.p_value:.2g})."
    )
