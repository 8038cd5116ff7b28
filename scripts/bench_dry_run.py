"""Dry-run every full-scale training config, and print the section of docs/benchmarks.md.

    python scripts/bench_dry_run.py             # runs what tests/golden/dry_runs.json lacks
    python scripts/bench_dry_run.py stage2_2b   # runs only the configs that are named
    python scripts/bench_dry_run.py --print     # prints the section from that file

A run takes about a minute of CPU time. Results are written one at a time, so an interrupted script
resumes. Remove the file to run all of them again. Configs that differ only in their data have the
same result, and are run once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import amnesia_bench as ab
from amnesia_bench.config.files import options
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import UserError
from amnesia_bench.records.codec import to_json
from amnesia_bench.requests.training import DryRunRequest, EstimateRequest
from amnesia_bench.store.provenance import collect_provenance

RESULTS = Path(__file__).resolve().parents[1] / "tests" / "golden" / "dry_runs.json"
# The batches of stages 1 and 2, of 32 and 96 sequences, cannot be divided among 64 processes.
LARGE = {
    "align": (32, ["train.micro_batch=1"]),
    "distill": (32, ["train.micro_batch=3"]),
    "next_token": (64, []),
}


def cases() -> Iterator[tuple[str, list[str], int]]:
    """Yield the config, the overrides and the number of processes of each dry run."""
    configs: dict[str, str] = {}
    for name in options("train"):
        if not name.startswith("tiny"):
            configs.setdefault(_without_data(ab.load_training(name)), name)
    for name in configs.values():
        yield name, [], 1 if name.startswith("one_gpu") else 8
    for name in configs.values():
        if name.startswith("one_gpu"):
            continue
        processes, overrides = LARGE[ab.load_training(name).train.objective]
        yield name, overrides, processes


def _without_data(run: TrainingRun) -> str:
    values = run.train.model_dump(mode="json")
    del values["name"], values["mixture"]
    return json.dumps(values, sort_keys=True)


def case_key(name: str, overrides: list[str], processes: int) -> str:
    return " ".join([name, *overrides, f"--processes {processes}"])


def run_missing(names: Sequence[str]) -> None:
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    for name, overrides, processes in cases():
        case = case_key(name, overrides, processes)
        if case in stored["runs"] or (names and name not in names):
            continue
        started = time.process_time()
        run = ab.load_training(name, overrides)
        try:
            result = ab.dry_run(DryRunRequest(run=run, processes=processes))
        except UserError as error:
            print(f"{case}: {error.what}", file=sys.stderr)
            continue
        seconds = time.process_time() - started
        print(f"{case}: {seconds:.0f} s of CPU time", file=sys.stderr, flush=True)
        stored["runs"][case] = to_json(result)
        made = collect_provenance(["scripts/bench_dry_run.py"], seeds={})
        stored["made"] = {
            "commit": made.commit,
            "date": made.started[:10],
            "cpu": made.hardware.cpu,
            "torch": made.packages.get("torch"),
            "transformers": made.packages.get("transformers"),
        }
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


def print_section() -> None:
    stored = json.loads(RESULTS.read_text())
    made, runs = stored["made"], stored["runs"]
    print(
        "## Dry runs of training\n\n"
        "One training step of each full-scale config on tensors without data "
        "(`python scripts/bench_dry_run.py`;\n"
        f"{made['date']}, {made['cpu']}, torch {made['torch']}, transformers "
        f"{made['transformers']}). All values are\ncalculated; none was measured on a GPU. *Peak*: "
        "live tensors of rank 0 in GB, blocks not compiled.\n*Bound*: the estimate without its "
        "reserve of 4 GB. *Fits*: peak and reserve are below 80 GB. *GFLOP per\ntoken*: dry run / "
        "estimate, without and with recomputation. Collectives of a micro-batch: number (GB).\n"
        "Sequences of SFT have four documents of equal length, since more than one exercises their "
        "boundaries\nand the lengths in the data are not known. Configs that differ only in their "
        "data have one row; those\nof one_gpu run on one GPU. More than 8 GPUs are nodes of 8, "
        "each with a copy of the model. The\nbatches of stages 1 and 2 cannot be divided among 64 "
        "GPUs, so these run on 32.\n"
    )
    if lacking := [case for case in (case_key(*x) for x in cases()) if case not in runs]:
        print(f"Not run yet: {', '.join(lacking)}.\n")
    columns = (
        "config | GPUs | peak forward | backward | optimizer | bound | fits | GFLOP per token | "
        "with recomputation | all-gathers | reduce-scatters | all-reduces"
    )
    print(f"| {columns} |\n|{'---|' * 12}")
    for case, result in runs.items():
        print(f"| {_row(case, result)} |")


def _row(case: str, result: dict[str, Any]) -> str:
    name, *overrides, processes = case.replace(" --processes ", " ").split(" ")
    run = ab.load_training(name, overrides)
    estimate = ab.estimate(EstimateRequest(run=run, processes=int(processes)))
    reserve = estimate.memory.reserve
    peaks = [result["peak_bytes"][phase] for phase in ("forward", "backward", "optimizer")]
    flops = (
        (result["flops_per_token"], estimate.flops_per_token),
        (result["hardware_flops_per_token"], estimate.hardware_flops_per_token),
    )
    traffic = result["collectives"]
    moved = [
        f"{traffic[kind]['count']:.0f} ({traffic[kind]['bytes'] / 1e9:.1f})"
        if kind in traffic
        else "-"
        for kind in ("all-gather", "reduce-scatter", "all-reduce")
    ]
    cells = [" ".join([name, *overrides]), processes]
    cells += [f"{x / 1e9:.1f}" for x in (*peaks, estimate.memory.total - reserve)]
    cells.append("yes" if max(peaks) + reserve <= 80e9 else "no")
    cells += [f"{ours / 1e9:.2f} / {theirs / 1e9:.2f}" for ours, theirs in flops]
    return " | ".join([*cells, *moved])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="configs to run; all if none is given")
    parser.add_argument("--print", action="store_true", help="run nothing", dest="only_print")
    args = parser.parse_args()
    if not args.only_print:
        run_missing(args.names)
    print_section()


if __name__ == "__main__":
    main()
