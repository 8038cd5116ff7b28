"""Restore compared with `cp -r` and with mergekit: wall time, peak memory, bits changed.

Every command runs in a new process. The commands of a table run in turn after one warm-up round. A
ratio is the median over the rounds (with the smallest and the largest). *cold*: the input was
dropped from the page cache before each run; *warm*: the whole input was in it. All commands use one
filesystem; outputs are removed and synced between runs. `amnesia restore` waits until its files are
on disk and hashes them; `cp` does neither.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from amnesia_bench.weights.checkpoint import open_checkpoint
from bench_checkpoints import SOFTMAX_LAYERS, write_pair

FEW_SHARDS, MANY_SHARDS = 1_200_000_000, 110_000_000
AMNESIA = [sys.executable, "-m", "amnesia_bench.cli.main"]


@dataclass(frozen=True)
class Run:
    seconds: float
    peak_mb: float


def timed(command: Sequence[str]) -> Run:
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()}")
    return Run(seconds, usage.ru_maxrss / 1000)


def write_pair_apart(folder: Path, family: str, shard_bytes: int) -> tuple[Path, Path]:
    """Write the checkpoints in another process: a child's peak memory includes its parent's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(write_pair, folder, family, shard_bytes).result()


def drop_pages(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load_pages(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(16 << 20):
                pass


def pairs(
    commands: Sequence[Callable[[Path], list[str]]],
    inputs: Sequence[Path],
    *,
    cold: bool,
    runs: int,
) -> list[list[Run]]:
    """Run the commands in turn, `runs` times each, after one warm-up round."""
    results: list[list[Run]] = [[] for _ in commands]
    for round_number in range(runs + 1):
        for i, command in enumerate(commands):
            for folder in inputs:
                (drop_pages if cold else load_pages)(folder)
            out = inputs[0].parent / "out"
            run = timed(command(out))
            if round_number:
                results[i].append(run)
            shutil.rmtree(out)
            os.sync()
    return results


def row(name: str, runs: list[Run], against: list[Run] | None) -> str:
    seconds = [run.seconds for run in runs]
    ratio = "1"
    if against is not None:
        ratios = [a.seconds / b.seconds for a, b in zip(runs, against, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    return (
        f"| {name} | {statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f}) | "
        f"{ratio} | {max(run.peak_mb for run in runs):.0f} |"
    )


def bench_copy(folder: Path, shard_bytes: int, runs: int) -> list[str]:
    pre, post = write_pair_apart(folder, "hypenet", shard_bytes)
    shards = sorted(post.glob("*.safetensors"))
    tensors = open_checkpoint(post).tensors
    touched = {
        post / tensors[f"model.layers.{i}.self_attn.{p}_proj.weight"][0]
        for i in SOFTMAX_LAYERS
        for p in "qk"
    }
    lines = [
        f"\n{len(shards)} shards, {sum(s.stat().st_size for s in shards) / 1e9:.2f} GB, "
        f"{len(touched)} of them edited ({sum(s.stat().st_size for s in touched) / 1e9:.2f} GB):\n",
        "| command | wall seconds: median (min-max) | ratio to cp -r | peak MB |",
        "|---|---|---|---|",
    ]
    restore = [*AMNESIA, "restore", "--pre", str(pre), "--post", str(post), "--out"]
    for cold in (True, False):
        state = "cold" if cold else "warm"
        copy, ours = pairs(
            [
                lambda out: ["cp", "-r", str(post), str(out)],
                lambda out: [*restore, str(out)],
            ],
            (post, pre),
            cold=cold,
            runs=runs,
        )
        lines += [
            row(f"cp -r, {state}", copy, None),
            row(f"amnesia restore, {state}", ours, copy),
        ]
    return lines


def bench_mergekit(folder: Path, mergekit: str, runs: int) -> list[str]:
    pre, post = write_pair_apart(folder, "qwen3", FEW_SHARDS)
    filters = [
        {"filter": f"layers.{i}.self_attn.{p}_proj", "value": 1.0}
        for i in SOFTMAX_LAYERS
        for p in "qk"
    ]
    recipe = {
        "merge_method": "linear",
        "dtype": "bfloat16",
        "parameters": {"normalize": False},
        "models": [
            {"model": str(pre), "parameters": {"weight": [*filters, {"value": 0.0}]}},
            {
                "model": str(post),
                "parameters": {"weight": [*({**f, "value": 0.0} for f in filters), {"value": 1.0}]},
            },
        ],
    }
    recipe_path = folder / "qk.yaml"
    recipe_path.write_text(json.dumps(recipe))
    layers = ",".join(map(str, SOFTMAX_LAYERS))
    restore = [*AMNESIA, "restore", "--pre", str(pre), "--post", str(post), "--layers", layers]
    commands: list[Callable[[Path], list[str]]] = [
        lambda out: [
            mergekit,
            str(recipe_path),
            str(out),
            "--lazy-unpickle",
            "--no-copy-tokenizer",
        ],
        lambda out: [*restore, "--out", str(out)],
    ]
    theirs, ours = pairs(commands, (post, pre), cold=False, runs=runs)
    wrong = []
    for command in commands:
        out = folder / "out"
        timed(command(out))
        wrong.append(wrong_values(pre, post, out))
        shutil.rmtree(out)
    ratios = [a.seconds / b.seconds for a, b in zip(theirs, ours, strict=True)]
    return [
        "\nA checkpoint with the proportions of Qwen3-8B; W_Q and W_K of the same 9 layers are "
        "restored, warm.\n*Values with wrong bits*: values that should be pre's (the restored "
        "ones) or post's (all others) and\nare not.\n",
        "| command | wall seconds: median (min-max) | ratio | peak MB | values with wrong bits |",
        "|---|---|---|---|---|",
        f"{row('mergekit-yaml, linear 1/0 by filters', theirs, ours)} {wrong[0]:,} |",
        f"{row('amnesia restore', ours, None)} {wrong[1]:,} |",
        f"\nmergekit takes {statistics.median(ratios):.1f} x as long.",
    ]


def wrong_values(pre: Path, post: Path, out: Path) -> int:
    """Count bf16 values whose bits differ from those of pre (restored tensors) or post (others)."""
    a, b, result = open_checkpoint(pre), open_checkpoint(post), open_checkpoint(out)
    planned = {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in SOFTMAX_LAYERS for p in "qk"}
    wrong = 0
    for name in b.tensors:
        expected = (a if name in planned else b).read(name)
        bits = (np.frombuffer(x, np.uint16) for x in (expected, result.read(name)))
        wrong += int(np.count_nonzero(np.not_equal(*bits)))
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder for 14 GB of scratch files")
    parser.add_argument("--mergekit", help="path of a mergekit-yaml to compare with")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    print("## Restore\n")
    print(__doc__.split("\n\n", 1)[1].strip())
    for shard_bytes in (FEW_SHARDS, MANY_SHARDS):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            print("\n".join(bench_copy(Path(folder), shard_bytes, args.runs)), flush=True)
    if args.mergekit:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            print("\n".join(bench_mergekit(Path(folder), args.mergekit, args.runs)), flush=True)


if __name__ == "__main__":
    main()
