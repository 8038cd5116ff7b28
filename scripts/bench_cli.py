"""Time of `amnesia --help`: 20 runs after one warm-up run, each in a new process."""

import statistics
import subprocess
import sys
import time

AMNESIA = [sys.executable, "-m", "amnesia_bench.cli.main"]
RUNS = 20


def seconds() -> float:
    started = time.perf_counter()
    subprocess.run([*AMNESIA, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    runs = [seconds() for _ in range(RUNS + 1)][1:]
    print("## Command line\n")
    print(__doc__)
    print("| command | median s | min | max | target |")
    print("|---|---|---|---|---|")
    numbers = " | ".join(f"{f(runs):.3f}" for f in (statistics.median, min, max))
    print(f"| amnesia --help | {numbers} | below 0.5 |")


if __name__ == "__main__":
    main()
