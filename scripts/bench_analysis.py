"""Memory and time of measuring one softmax layer, by number of tokens and block size.

python scripts/bench_analysis.py                    # 16,384 tokens, blocks of 64 to 512 queries
python scripts/bench_analysis.py --tokens 4096
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch

from amnesia_bench.analysis.consumers import DistanceHistogram, HeadStatistics
from amnesia_bench.analysis.row_blocks import AttentionCall, CausalPairs

# A softmax layer of HypeNet-2B.
HEADS, GROUPS, DIM = 16, 8, 128
BLOCKS = (64, 128, 256, 512)


def measure(tokens: int, block: int) -> None:
    """Print seconds and peak memory of the weights and the gradients of one layer."""
    generator = torch.Generator().manual_seed(0)
    query, upstream = torch.randn(2, 1, HEADS, tokens, DIM, generator=generator)
    key, value = torch.randn(2, 1, GROUPS, tokens, DIM, generator=generator)
    call = AttentionCall(
        0, query, key, value, DIM**-0.5, CausalPairs(query.device), block_queries=block
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    statistics = HeadStatistics(HEADS, tokens, None)
    for each in call.weights():
        statistics(each)
    middle = time.process_time()
    histogram = DistanceHistogram(HEADS, tokens)
    for each in call.gradients(upstream):
        histogram(each)
    end = time.process_time()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"| {tokens:,} | {block} | {middle - start:.1f} | {end - middle:.1f} | {peak:.0f} |")


def main() -> None:
    """Run each case in a new process, so that its peak memory does not include other cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--block", type=int, help="measure only this block size, in this process")
    args = parser.parse_args()
    if args.block is not None:
        measure(args.tokens, args.block)
        return
    print(
        "## Attention analysis\n\n"
        f"One softmax layer of HypeNet-2B ({HEADS} query heads, {GROUPS} key/value heads of {DIM}, "
        "float32).\n*Block*: queries whose attention rows are in memory at a time. The last column "
        "is the peak\nmemory in addition to the inputs.\n\n"
        "| tokens | block | weights, CPU seconds | gradients, CPU seconds | peak MB |\n"
        "|---|---|---|---|---|",
        flush=True,
    )
    for tokens in (args.tokens // 4, args.tokens // 2, args.tokens):
        for block in BLOCKS:
            command = [sys.executable, __file__, "--tokens", str(tokens), "--block", str(block)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
