"""Simulations show how often the sequential test of `amnesia check` detects a drop, how often it
misses one, and how many prompts it needs.

Each row is 2,000 simulated checks of one prompt set with at most 500 prompts. *lost* is the
probability that only the checkpoint before the fine-tune answers a prompt correctly, *won* that
only the checkpoint after it does; their difference is the drop. Each prompt set gets 1 / *sets* of
the error rate: a check of six prompt sets (three tasks at two lengths) judges each with a sixth of
it. No model runs.
"""  # noqa: D205 - printed as it is

from __future__ import annotations

import itertools

import numpy as np

from amnesia_bench.config.load import load_niah
from amnesia_bench.recall.check import ERROR_RATE
from amnesia_bench.recall.sequential import judge, looks
from amnesia_bench.records.recall import CheckVerdict, Rule
from amnesia_bench.statistics.intervals import PairedCounts

TRIALS = 2000
SAMPLES = load_niah("check").samples
RULE = Rule(samples=SAMPLES, margin=0.0, error_rate=ERROR_RATE)
# (lost, won): no drop with ever more churn, then drops of 5, 10, 20 and 40 points.
CASES = (
    *((churn, churn) for churn in (0.0, 0.01, 0.05, 0.15)),
    *((drop + churn, churn) for drop in (0.02, 0.05, 0.10, 0.20, 0.40) for churn in (0.0, 0.05)),
)


def simulate(
    lost: float, won: float, num_prompt_sets: int, rng: np.random.Generator
) -> tuple[CheckVerdict, int]:
    """Return the verdict on one simulated prompt set, and the number of prompts it needed."""
    rest = (1 - lost - won) / 2
    total = np.zeros(4, int)
    history: list[PairedCounts] = []
    verdict = CheckVerdict.UNDECIDED
    for before, look in itertools.pairwise((0, *looks(RULE.samples))):
        total = total + rng.multinomial(look - before, (rest, lost, won, rest))
        both, only_pre, only_post, neither = map(int, total)
        history.append(
            PairedCounts(both=both, only_first=only_pre, only_second=only_post, neither=neither)
        )
        verdict = judge(history, RULE, num_prompt_sets)
        if verdict is not CheckVerdict.UNDECIDED:
            break
    return verdict, history[-1].n


def main() -> None:
    print("## Recall check\n")
    print(__doc__)
    *early, last = looks(SAMPLES)
    print(
        f"The error rate is {100 * ERROR_RATE:g} %; the test looks at the data after "
        f"{', '.join(map(str, early))} and {last} prompts.\n"
    )
    print("| lost | won | drop | sets | regression | no regression | undecided | prompts (mean) |")
    print("|---|---|---|---|---|---|---|---|")
    for num_prompt_sets in (1, 6):
        for lost, won in CASES:
            rng = np.random.default_rng(0)
            found = [simulate(lost, won, num_prompt_sets, rng) for _ in range(TRIALS)]
            verdicts = [verdict for verdict, _ in found]
            shares = " | ".join(f"{100 * verdicts.count(v) / TRIALS:.1f} %" for v in CheckVerdict)
            mean = sum(n for _, n in found) / TRIALS
            row = " | ".join(f"{100 * x:.0f} %" for x in (lost, won, lost - won))
            print(f"| {row} | {num_prompt_sets} | {shares} | {mean:.0f} |")


if __name__ == "__main__":
    main()
