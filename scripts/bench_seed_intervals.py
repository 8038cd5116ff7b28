"""Print how often intervals and tests over seeds are right, by simulation."""

import argparse

import numpy as np

from amnesia_bench.statistics.over_seeds import (
    ALPHA,
    BOOTSTRAP_METHOD,
    bootstrap_means,
    sign_flip_over_seeds,
)
from amnesia_bench.statistics.resampling import percentile_interval

RECALL = 0.5
PROMPTS = 72
SPREADS = (0.0, 0.05, 0.1, 0.2)
SEEDS = (3, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="number of simulated reports")
    runs = parser.parse_args().runs
    print("## Statistics over seeds\n")
    print(
        "`scripts/bench_seed_intervals.py`: how many of the 95 % intervals (two-level bootstrap, "
        "not yet widened to the interval over prompts) contain the mean, in "
        f"{runs:,} simulated reports "
        f"per number. Each seed answers {PROMPTS} prompts; its recall has a normal distribution "
        f"around {100 * RECALL:.0f} %, clipped to 0 to 100 %. *Shared*: all seeds answer the "
        "same prompts; the difficulty of the prompt accounts for half of an answer's variance.\n"
    )
    print("| standard deviation of seeds, points | prompts | 3 seeds | 5 seeds | 10 seeds |")
    print("|---|---|---|---|---|")
    for shared in (False, True):
        for spread in SPREADS:
            cells = " | ".join(f"{coverage(seeds, spread, shared, runs):.1%}" for seeds in SEEDS)
            print(f"| {100 * spread:.0f} | {'shared' if shared else 'own'} | {cells} |")
    print(
        "\nShare of false alarms of the exact sign-flip test over seeds at p < 0.05, where the "
        "true mean is 0 and the seeds are normal or exponential; and how often the test finds a "
        "mean of one standard deviation of the seeds.\n"
    )
    print("| seeds | false alarms, normal | false alarms, exponential | found |")
    print("|---|---|---|---|")
    for seeds in (3, 5, 6, 8, 10):
        print(f"| {seeds} | {' | '.join(f'{share:.1%}' for share in alarms(seeds, runs))} |")
    print()


def coverage(seeds: int, spread: float, shared: bool, runs: int) -> float:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(runs):
        means = np.clip(RECALL + spread * rng.normal(size=seeds), 0, 1)
        luck = rng.random((seeds, PROMPTS))
        if shared:
            luck = np.where(rng.random(luck.shape) < 0.5, rng.random(PROMPTS), luck)
        answers = [
            {(0 if shared else i, doc): float(value) for doc, value in enumerate(row)}
            for i, row in enumerate(luck < means[:, None])
        ]
        interval = percentile_interval(bootstrap_means(answers), BOOTSTRAP_METHOD)
        hits += interval.low <= RECALL <= interval.high
    return hits / runs


def alarms(seeds: int, runs: int) -> tuple[float, float, float]:
    rng = np.random.default_rng(1)
    normal = rng.normal(size=(runs, seeds))
    skewed = rng.exponential(size=(runs, seeds)) - 1
    designs = (normal, skewed, 1 + normal)
    first, second, third = (
        float(np.mean([sign_flip_over_seeds(list(row)) < ALPHA for row in design]))
        for design in designs
    )
    return first, second, third


if __name__ == "__main__":
    main()
