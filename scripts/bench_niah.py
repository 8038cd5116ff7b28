"""NIAH prompts: our builder compared with lm-eval's generator in the same run, on one core.

python scripts/bench_niah.py           # lm-eval builds 20 samples, the rest is extrapolated
python scripts/bench_niah.py --full    # lm-eval builds all 500: ten minutes
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from amnesia_bench.recall.niah import build_prompts
from amnesia_bench.recall.niah.haystack import read_haystack
from amnesia_bench.recall.niah.tasks import SINGLE_TASKS
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.tokenizers.sentences import install_sentence_model
from amnesia_bench.tokenizers.tokenizer import load_tokenizer

SHARED = Path(os.environ.get("AMNESIA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
TOKENIZER = SHARED / "data" / "qwen2_tokenizer"
HAYSTACK = SHARED / "data" / "pg_essays_ruler.json"
LENGTH = 262144
SAMPLES = 500
TABLE_1 = (32768, 65536, 131072, 262144)


def time_ours(folder: Path) -> tuple[float, float]:
    """Return wall and CPU seconds of building a prompt set, tokenizer and disk included."""
    request = BuildPromptsRequest(
        tokenizer=TOKENIZER,
        lengths=(LENGTH,),
        tasks=("niah_single_2",),
        samples=SAMPLES,
        haystack=HAYSTACK,
    )
    wall, cpu = time.perf_counter(), time.process_time()
    build_prompts(request, folder)
    return time.perf_counter() - wall, time.process_time() - cpu


def time_lm_eval(samples: int, length: int = LENGTH) -> tuple[float, float, float, float]:
    """Return wall and CPU seconds of lm-eval's search, then of `samples` samples."""
    install_sentence_model()
    from lm_eval.tasks.ruler import niah_utils, prepare_niah

    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    def searched(items: Any, **_: Any) -> Any:
        mark()
        return items

    prepare_niah.tqdm = searched
    haystack = list(read_haystack(HAYSTACK).words)
    tokenizer = load_tokenizer(TOKENIZER)
    random.seed(0)
    mark()
    prepare_niah.generate_samples(
        haystack,
        TOKENIZER=tokenizer,
        max_seq_length=length,
        template=niah_utils.TEMPLATE,
        type_haystack="essay",
        type_needle_k="words",
        type_needle_v="numbers",
        num_samples=samples,
    )
    mark()
    (w0, c0), (w1, c1), (w2, c2) = marks
    return w1 - w0, c1 - c0, w2 - w1, c2 - c1


def bench_one_prompt_set(folder: Path, *, full: bool) -> None:
    samples = SAMPLES if full else 20
    ours_wall, ours_cpu = time_ours(folder / "one")
    search_wall, search_cpu, sample_wall, sample_cpu = time_lm_eval(samples)
    scale = SAMPLES / samples
    wall, cpu = search_wall + scale * sample_wall, search_cpu + scale * sample_cpu
    how = (
        "all samples built"
        if full
        else f"search {search_cpu:.0f} s, and {samples} samples extrapolated to {SAMPLES}"
    )
    print(
        f"Time to build {SAMPLES} samples of niah_single_2 at {LENGTH} tokens with the Qwen2 "
        "tokenizer on one core:\n"
    )
    print("| generator | wall (s) | CPU (s) |\n|---|---|---|")
    print(f"| lm-eval 0.4.13 ({how}) | {wall:.1f} | {cpu:.1f} |")
    print(f"| ours, from tokenizer to files | {ours_wall:.1f} | {ours_cpu:.1f} |")
    print(f"| ratio | {wall / ours_wall:.0f} x | {cpu / ours_cpu:.0f} x |\n")


def bench_table_1(folder: Path) -> None:
    out = folder / "table1"
    command = [sys.executable, "-m", "amnesia_bench.cli.main", "niah", "build"]
    command += ["--tokenizer", str(TOKENIZER), "--haystack", str(HAYSTACK), "--out", str(out)]
    command += ["--lengths", ",".join(map(str, TABLE_1)), "--tasks", ",".join(SINGLE_TASKS)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    sizes = sorted(path.stat().st_size for path in (out / "cells").iterdir())
    whole = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(
        f"The command builds all {len(sizes)} prompt sets of Table 1 (three tasks at 32K, 64K, "
        f"128K and 256K, {SAMPLES}\nsamples each) on one core in {wall:.1f} s wall, "
        f"{used.ru_utime + used.ru_stime:.1f} s CPU, with a peak memory of "
        f"{used.ru_maxrss / 1e6:.2f} GB. A set takes {sizes[0] / 1e3:.0f}\nto "
        f"{sizes[-1] / 1e3:.0f} kB on disk; all sets and the haystack take {whole / 1e6:.2f} MB.\n"
    )


# Run in a process of its own: the import of lm-eval's generator is part of what a run costs.
_LM_EVAL_PROCESS = """
import sys
from scripts.bench_niah import time_lm_eval
length, samples = map(int, sys.argv[1:])
_, search, _, drawn = time_lm_eval(samples, length)
print(search, drawn)
"""


def bench_processes(folder: Path, lengths: tuple[int, ...], *, full: bool) -> None:
    """Compare whole processes, imports included: lm-eval's, and our command cold and warm."""
    print(
        "CPU seconds of a process that builds samples of niah_single_2, with imports. *Cold*: the "
        "tokenizer was never\nloaded before, *warm*: it is in the store. Imports: CPU seconds of "
        "lm-eval's process outside the search\nand the samples.\n"
    )
    print("| length | samples | lm-eval 0.4.13 | of it imports | ours, cold | ours, warm | ratio |")
    print("|---|---|---|---|---|---|---|")
    for length in lengths:
        drawn_samples = SAMPLES if full else 10
        before = _children_cpu()
        command = [sys.executable, "-c", _LM_EVAL_PROCESS, str(length), str(drawn_samples)]
        root = Path(__file__).resolve().parents[1]
        printed = subprocess.run(
            command, check=True, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ).stdout
        search, drawn = map(float, printed.split())
        imports = _children_cpu() - before - search - drawn
        for samples in (SAMPLES // 5, SAMPLES):
            theirs = imports + search + drawn * samples / drawn_samples
            cold, warm = (_time_command(folder, length, samples, i) for i in range(2))
            print(
                f"| {length:,} | {samples} | {theirs:.1f} | {imports:.1f} | {cold:.1f} | "
                f"{warm:.1f} | {theirs / warm:.1f} x |"
            )
    print()


def _time_command(folder: Path, length: int, samples: int, number: int) -> float:
    """Return the CPU seconds of our command; the first of its kind finds an empty store."""
    out = folder / f"process-{length}-{samples}-{number}"
    command = [sys.executable, "-m", "amnesia_bench.cli.main", "niah", "build"]
    command += ["--tokenizer", str(TOKENIZER), "--haystack", str(HAYSTACK), "--out", str(out)]
    command += ["--lengths", str(length), "--tasks", "niah_single_2"]
    command += ["--samples", str(samples)]
    environment = {**os.environ, "AMNESIA_STORE": str(folder / f"store-{length}-{samples}")}
    before = _children_cpu()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return _children_cpu() - before


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="build all samples with lm-eval")
    parser.add_argument(
        "--lengths", default="4096,32768,262144", help="context lengths of the comparison"
    )
    parser.add_argument(
        "--only-processes", action="store_true", help="leave out Table 1 and one prompt set"
    )
    args = parser.parse_args()
    print("## NIAH prompts\n")
    if not HAYSTACK.exists():
        print(f"Not run: {HAYSTACK} is missing.")
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        if not args.only_processes:
            # First: otherwise the children's peak memory would include that of other processes.
            bench_table_1(Path(folder))
        lengths = tuple(map(int, args.lengths.split(",")))
        bench_processes(Path(folder), lengths, full=args.full)
        if args.only_processes:
            return
        bench_one_prompt_set(Path(folder), full=args.full)


if __name__ == "__main__":
    main()
