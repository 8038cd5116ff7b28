"""Count decode steps, prefilled tokens and the sampler's time: bench_decoding.py [--draws N].

Prints Markdown. The counts are exact and need no GPU: how many steps static and refilled batches
take does not depend on the machine. Lengths of answers are drawn from a lognormal distribution,
such as those of reasoning models on MATH500, and end at the limit.
"""

import argparse
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from amnesia_bench.inference.batch_rows import RefillRule
from amnesia_bench.inference.prefix_tree import (
    PromptDigest,
    leaves_of,
    plan_prefixes,
    prefill_tokens,
)
from amnesia_bench.inference.sampling import choose, choose_by_sorting
from amnesia_bench.records.evaluation import Sampling

PROBLEMS, REPEATS, LIMIT, MEDIAN = 500, 16, 8192, 1800
VOCAB = 151_936
CHUNK = 2048


@dataclass(frozen=True)
class Steps:
    """The decode steps of some answers, and the sum of rows over all steps."""

    steps: int
    row_steps: int
    refills: int
    tokens: int

    @property
    def used(self) -> float:
        """The share of computed rows whose token became part of an answer."""
        return self.tokens / self.row_steps


def answer_lengths(count: int, *, median: int, limit: int, seed: int) -> list[int]:
    """Return lognormal lengths in tokens, at least 1 and at most `limit`."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), 0.9, count)
    return [int(length) for length in drawn.clip(1, limit)]


def static(lengths: Sequence[int], rows: int) -> Steps:
    """Count the steps if each batch is decoded to its end, and halved when half of it is done."""
    parts = [refilled(lengths[i : i + rows], rows) for i in range(0, len(lengths), rows)]
    return Steps(
        steps=sum(part.steps for part in parts),
        row_steps=sum(part.row_steps for part in parts),
        refills=len(parts),
        tokens=sum(part.tokens for part in parts),
    )


def refilled(lengths: Sequence[int], rows: int) -> Steps:
    """Count the steps of the engine's rule, which replaces finished rows by waiting prompts."""
    rule, waiting = RefillRule(), deque(lengths)
    left = np.zeros(0, np.int64)  # the tokens that each row still lacks
    steps = row_steps = refills = 0
    while waiting or left.any():
        if waiting and rule.due(int((left > 0).sum())):
            left = left[left > 0]
            taken = [waiting.popleft() for _ in range(min(rows - len(left), len(waiting)))]
            left = np.concatenate([left, taken])
            rule.refilled()
            refills += 1
        left = np.maximum(left - 1, 0)
        running = int((left > 0).sum())
        rule.after_step(running, len(left))
        if running:
            if not waiting and running <= len(left) // 2:
                left = left[left > 0]
            # The first token of an answer comes from the prefill, so its step runs no model.
            steps += 1
            row_steps += len(left)
        else:
            left = left[:0]
    return Steps(steps=steps, row_steps=row_steps, refills=refills, tokens=sum(lengths))


def steps_table() -> str:
    lengths = answer_lengths(PROBLEMS * REPEATS, median=MEDIAN, limit=LIMIT, seed=0)
    cut = sum(length == LIMIT for length in lengths) / len(lengths)
    lines = [
        f"{len(lengths):,} answers of {np.mean(lengths):,.0f} tokens in the mean, {cut:.1%} of "
        f"them cut at {LIMIT:,} (drawn: lognormal, median {MEDIAN:,}, sigma 0.9).\n",
        "| rows | steps, static | steps, refilled | saved | refills | rows in use, static | "
        "refilled |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows in (16, 64, 200, 512):
        old, new = static(lengths, rows), refilled(lengths, rows)
        lines.append(
            f"| {rows} | {old.steps:,} | {new.steps:,} | {1 - new.steps / old.steps:.0%} | "
            f"{new.refills:,} | {old.tokens / old.steps / rows:.0%} | "
            f"{new.tokens / new.steps / rows:.0%} |"
        )
    return "\n".join(lines)


def prefill_table() -> str:
    """Count the prefilled tokens of questions that are each asked 16 times."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(110), 0.5, PROBLEMS).clip(30, 1500).astype(int)
    questions = [rng.integers(0, VOCAB, length, dtype=np.int32) for length in lengths]
    digests = [PromptDigest.of(tokens, CHUNK) for tokens in questions for _ in range(REPEATS)]
    counts = []
    for share in (False, True):
        nodes = plan_prefixes(digests, CHUNK, share=share)
        leaves = leaves_of(nodes, digests, [LIMIT] * len(digests), share=share)
        counts.append(prefill_tokens(nodes, leaves))
    return (
        f"{PROBLEMS} questions of {lengths.mean():.0f} tokens in the mean, {REPEATS} times each: "
        f"{counts[0]:,} prompt tokens, of which {counts[1]:,} are prefilled."
    )


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def sampler_table(draws: int) -> str:
    """Time both ways to choose a token on the same logits, alternately, on one thread."""
    torch.set_num_threads(1)
    how = Sampling(max_new_tokens=1, temperature=0.6, top_p=0.95, top_k=None, stop=())
    lines = [
        f"| rows | full sort, ms | candidates, ms | ratio (median of {draws} pairs) |",
        "|---|---|---|---|",
    ]
    for rows in (1, 16, 64):
        generator = torch.Generator().manual_seed(rows)
        logits = torch.randn(rows, VOCAB, generator=generator)
        places = torch.randint(VOCAB, (rows, 200), generator=generator)
        logits.scatter_add_(1, places, 16 * torch.rand(rows, 200, generator=generator))
        uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
        tokens, uncertain = choose(logits, how, uniform)
        assert not uncertain.any()
        assert torch.equal(tokens, choose_by_sorting(logits, how, uniform))
        pairs = [
            (
                seconds(lambda: choose_by_sorting(logits, how, uniform)),  # noqa: B023
                seconds(lambda: choose(logits, how, uniform)),  # noqa: B023
            )
            for _ in range(draws)
        ]
        slow, fast = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(old / new for old, new in pairs)
        lines.append(f"| {rows} | {slow:.1f} | {fast:.1f} | {ratio:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=15, help="pairs of timed draws")
    args = parser.parse_args()
    print("## Decoding by the transformers engine\n")
    print("`python scripts/bench_decoding.py`. Steps and tokens are counted; times are of one ")
    print("thread on a CPU.\n")
    print("**Refilled batches.** " + steps_table() + "\n")
    print("A static batch waits for its longest answer; finished rows are removed when half of it")
    print(
        "is done. A refilled batch gives their places to waiting prompts as soon as the free rows"
    )
    print("have cost as much as the refill (`inference/batch_rows.py`).\n")
    print("**Repeats share their prefill.** " + prefill_table() + "\n")
    print(f"**The sampler**, temperature 0.6, top-p 0.95, {VOCAB:,} tokens:\n")
    print(sampler_table(args.draws))


if __name__ == "__main__":
    main()
