"""Simulate how often the rule of `amnesia check` and other rules notice a loss: bench_gate.py.

python scripts/bench_gate.py                       # writes the tables of docs/gate.md
python scripts/bench_gate.py --pairs A B           # the same rules on resampled pairs of your logs

No model runs. The sequential rule is computed for all repetitions at once; `check_against_judge`
compares it with `recall.sequential.judge` on some of them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.comparison.opening import open_score_log
from amnesia_bench.comparison.pairing import pair_logs
from amnesia_bench.config.load import load_niah
from amnesia_bench.recall.check import ERROR_RATE
from amnesia_bench.recall.sequential import judge, looks
from amnesia_bench.records.recall import CheckVerdict, Rule
from amnesia_bench.statistics.intervals import PairedCounts, wilson

GATE = Path(__file__).resolve().parents[1] / "docs" / "gate.md"
WRITTEN = "<!-- `scripts/bench_gate.py` writes what follows. -->\n"
REPETITIONS, SEED = 2000, 0
SAMPLES = load_niah("check").samples
RULE = Rule(samples=SAMPLES, margin=0.0, error_rate=ERROR_RATE)
LOSSES = (0.0, 0.02, 0.03, 0.05, 0.10)
# (accuracy before, correlation of the latent variables of a pair).
MODELS = ((0.95, 0.9), (0.95, 0.5), (0.8, 0.9), (0.8, 0.5))

Counts = NDArray[np.int64]  # [repetitions, looks, 4]: both, lost, won, neither; cumulative
Draw = Callable[[np.random.Generator, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Scenario:
    """Pairs with a known loss: the probabilities of both, lost, won and neither."""

    name: str
    chances: tuple[float, float, float, float]

    @property
    def loss(self) -> float:
        return self.chances[1] - self.chances[2]


def latent_pair(accuracy: float, loss: float, correlation: float) -> tuple[float, ...]:
    """Return the chances of a bivariate probit model.

    A prompt is answered correctly by a model if a standard normal variable is below the quantile
    of the model's accuracy; the variables of the two models are correlated, since they share the
    difficulty of the prompt. The integral over the shared part uses 20,001 nodes.
    """
    normal = NormalDist()
    shared = np.linspace(-8, 8, 20_001)
    weights = np.exp(-(shared**2) / 2)
    weights /= weights.sum()
    own = math.sqrt(1 - correlation)
    pre, post = (
        0.5 * (1 + _erf((normal.inv_cdf(p) - math.sqrt(correlation) * shared) / own / math.sqrt(2)))
        for p in (accuracy, accuracy - loss)
    )
    both, lost = float((weights * pre * post).sum()), float((weights * pre * (1 - post)).sum())
    won = float((weights * (1 - pre) * post).sum())
    return both, lost, won, 1 - both - lost - won


_erf = np.vectorize(math.erf)


def draw_counts(scenario: Scenario, generator: np.random.Generator) -> Counts:
    """Draw the cumulative counts at each look, for all repetitions."""
    steps = [after - before for before, after in itertools.pairwise((0, *looks(SAMPLES)))]
    new = [generator.multinomial(step, scenario.chances, REPETITIONS) for step in steps]
    return np.cumsum(np.stack(new, axis=1), axis=1)


def sequential(counts: Counts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Apply the rule of `amnesia check` to one prompt set, for all repetitions at once.

    Returns:
        The verdicts (1 regression, -1 no regression, 0 undecided), and the numbers of prompts used.
    """
    numbers = looks(SAMPLES)
    flips = counts[:, :, 1] + counts[:, :, 2]
    width = int(flips[:, -1].max()) + 1
    alive = np.zeros((len(counts), width))
    alive[:, 0] = 1.0
    spent = np.zeros(len(counts))
    verdicts = np.zeros(len(counts), int)
    used = np.full(len(counts), SAMPLES)
    rows = np.arange(len(counts))
    for i, n in enumerate(numbers):
        new = flips[:, i] - (flips[:, i - 1] if i else 0)
        for tosses in np.unique(new):
            alive[new == tosses] = alive[new == tosses] @ _walk(int(tosses), width)
        tails = np.cumsum(alive[:, ::-1], axis=1)[:, ::-1]
        bound = (tails > (ERROR_RATE * n / SAMPLES - spent)[:, None]).sum(axis=1)
        crossed = counts[:, i, 1] >= np.where(bound > flips[:, i], width + 1, bound)
        inside = bound < width
        spent += np.where(inside, tails[rows, np.minimum(bound, width - 1)], 0.0)
        alive[np.arange(width)[None, :] >= bound[:, None]] = 0.0
        share = ERROR_RATE * (n - (numbers[i - 1] if i else 0)) / SAMPLES
        cleared = _excludes(counts[:, i], RULE.excluded_drop, 1 - 2 * share)
        verdict = np.where(crossed, 1, np.where(cleared, -1, 0))
        decided = (verdicts == 0) & (verdict != 0) & (used == SAMPLES)
        verdicts[decided] = verdict[decided]
        used[decided] = n
    return verdicts, used


def _walk(tosses: int, width: int) -> NDArray[np.float64]:
    """Return the transition matrix of the number of losses over this many fair coin flips."""
    coin = [math.comb(tosses, k) / 2**tosses for k in range(tosses + 1)]
    matrix = np.zeros((width, width))
    for k, chance in enumerate(coin[:width]):
        matrix += chance * np.eye(width, k=k)
    return matrix


def _excludes(counts: Counts, loss: float, level: float) -> NDArray[np.bool_]:
    """Return whether the upper end of Tango's interval is below a loss; see `statistics._tango`."""
    n, b, c = counts.sum(axis=1), counts[:, 1], counts[:, 2]
    excess = b - c - n * loss
    linear = (2 * n - b + c) * loss - b - c
    constant = -c * loss * (1 - loss)
    won = (np.sqrt(np.maximum(linear * linear - 8 * n * constant, 0)) - linear) / (4 * n)
    variance = n * (2 * won + loss * (1 - loss))
    return np.asarray(excess / np.sqrt(variance) < -NormalDist().inv_cdf((1 + level) / 2))


def check_against_judge(counts: Counts, verdicts: NDArray[np.int64]) -> None:
    """Compare the first verdicts with those of the function that the command calls."""
    names = {1: CheckVerdict.REGRESSION, -1: CheckVerdict.NO_REGRESSION, 0: CheckVerdict.UNDECIDED}
    for repetition, verdict in zip(counts[:20], verdicts, strict=False):
        history: list[PairedCounts] = []
        found = CheckVerdict.UNDECIDED
        for both, lost, won, neither in repetition.tolist():
            history.append(
                PairedCounts(both=both, only_first=lost, only_second=won, neither=neither)
            )
            found = judge(history, RULE, 1)
            if found is not CheckVerdict.UNDECIDED:
                break
        assert found is names[int(verdict)], (repetition, found, verdict)


def unpaired_z(last: Counts) -> NDArray[np.bool_]:
    """lm-eval's comparison of two runs: z of two means with their own standard errors."""
    pre, post = (last[:, 0] + last[:, 1]) / SAMPLES, (last[:, 0] + last[:, 2]) / SAMPLES
    variance = (pre * (1 - pre) + post * (1 - post)) / (SAMPLES - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (pre - post) / np.sqrt(variance)
    return np.asarray(z > NormalDist().inv_cdf(1 - ERROR_RATE))


def relative_tolerance(last: Counts) -> NDArray[np.bool_]:
    """VLLM's accuracy gate: more than 8 % below the reference, here the same run of pre."""
    pre, post = last[:, 0] + last[:, 1], last[:, 0] + last[:, 2]
    return np.asarray(post < (1 - 0.08) * pre)


def two_points(last: Counts) -> NDArray[np.bool_]:
    """A fixed tolerance of two points."""
    return np.asarray((last[:, 1] - last[:, 2]) > 0.02 * SAMPLES)


def paired_fixed(last: Counts) -> NDArray[np.bool_]:
    """McNemar's exact test on all prompts, one-sided at the same error rate."""
    lost, flips = last[:, 1], last[:, 1] + last[:, 2]
    critical = {}
    for count in np.unique(flips).tolist():
        tails = np.cumsum([math.comb(count, k) / 2**count for k in range(count, -1, -1)])[::-1]
        critical[count] = int((tails > ERROR_RATE).sum())
    return lost >= np.array([critical[count] for count in flips.tolist()])


FIXED = (paired_fixed, unpaired_z, two_points, relative_tolerance)


def row(scenario: Scenario) -> str:
    """Return one row of a table."""
    counts = draw_counts(scenario, np.random.default_rng(SEED))
    verdicts, used = sequential(counts)
    check_against_judge(counts, verdicts)
    flagged = [verdicts == 1, *(rule(counts[:, -1]) for rule in FIXED)]
    rates = " | ".join(_rate(int(f.sum())) for f in flagged)
    discordant = scenario.chances[1] + scenario.chances[2]
    cleared = 100 * (verdicts == -1).mean()
    return (
        f"| {scenario.name} | {100 * scenario.loss:.1f} | {100 * discordant:.1f} % | {rates} | "
        f"{cleared:.1f} % | {used.mean():.0f} |"
    )


def _rate(count: int) -> str:
    interval = wilson(count, REPETITIONS)
    return f"{100 * count / REPETITIONS:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def simulated() -> Iterator[Scenario]:
    """Yield the simulated pairs: no loss first, then ever larger losses."""
    for loss in LOSSES:
        for accuracy, correlation in MODELS:
            both, lost, won, neither = latent_pair(accuracy, loss, correlation)
            yield Scenario(f"{100 * accuracy:.0f} %, {correlation:g}", (both, lost, won, neither))


def real(a: Path, b: Path) -> Iterator[Scenario]:
    """Yield the pairs of two logs, resampled: without a loss, and from the better to the worse."""
    paired = pair_logs(
        open_score_log(a), open_score_log(b), common_only=True, different_prompts=True
    )
    for pair in paired.pairs:
        first, second = np.asarray(pair.a), np.asarray(pair.b)
        if not np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
            continue
        lost, won = float((first > second).mean()), float((second > first).mean())
        both = float((first * second).mean())
        rest = 1 - both - lost - won
        name = f"{pair.key.task} {pair.key.metric} (n={len(first)})"
        change = (lost + won) / 2
        yield Scenario(f"{name}, labels exchanged at random", (both, change, change, rest))
        yield Scenario(name, (both, max(lost, won), min(lost, won), rest))


def table(scenarios: Iterator[Scenario], first: str) -> str:
    """Return a table in Markdown; rates in per cent with Wilson's 95 % intervals."""
    heads = [
        first,
        "true loss, points",
        "discordant",
        "`amnesia check`",
        "paired, all prompts",
        "unpaired z",
        "2 points",
        "8 % relative",
        "`check` says no regression",
        "prompts used by `check`",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *map(row, scenarios)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", nargs=2, type=Path, metavar=("A", "B"), help="two logs")
    args = parser.parse_args()
    if args.pairs:
        print(table(real(*args.pairs), "task"))
        return
    logs = Path(__file__).resolve().parents[1] / "tests" / "golden" / "sample_logs" / "lm_eval"
    command = shlex.join(["python", "scripts/bench_gate.py"])
    text = (
        f"`{command}`, seed {SEED}, {REPETITIONS:,} repetitions per row, {SAMPLES} prompts per "
        f"repetition, numpy {np.__version__}.\n\n### Simulated pairs\n\n"
        + table(simulated(), "accuracy before, correlation")
        + "\n### Real pairs\n\n"
        + table(real(logs / "a", logs / "b"), "task")
    )
    kept = GATE.read_text(encoding="utf-8").partition(WRITTEN)[0]
    GATE.write_text(f"{kept}{WRITTEN}\n{text}", encoding="utf-8")
    print("## Power of the gate\n\nThe tables of [gate.md](gate.md) were simulated again.\n")


if __name__ == "__main__":
    sys.exit(main())
