"""Time and memory of `amnesia eval niah` without the model: lm-eval with a fake engine.

Prompts are built before and not counted. Each length runs in a new process. The essays and
the tokenizer are those of the folder of shared inputs ($AMNESIA_SHARED, or next to the repository).
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.fake_engine import FakeEngine

from amnesia_bench.inference.candidates import Candidate
from amnesia_bench.lm_eval_bridge.evaluation import NiahEvaluation
from amnesia_bench.recall.niah import build_prompts, open_prompt_sets
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.store.held_files import HeldFiles
from amnesia_bench.tokenizers.tokenizer import load_tokenizer

SHARED = Path(os.environ.get("AMNESIA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
TOKENIZER = SHARED / "data" / "qwen2_tokenizer"
HAYSTACK = SHARED / "data" / "pg_essays_ruler.json"
TASK = "niah_single_2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="32768,262144")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--one", type=Path, help="folder of prompts to run in this process")
    args = parser.parse_args()
    if args.one is not None:
        measure(args.one, args.samples)
        return
    print("## lm-eval with a fake engine\n")
    print(f"`amnesia eval niah`, {args.samples} samples of {TASK}, a fake engine.\n")
    print("| length | seconds | peak memory, GB |")
    print("|---|---|---|")
    for length in map(int, args.lengths.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            prompts = Path(folder) / "prompts"
            build_prompts(
                BuildPromptsRequest(
                    tokenizer=TOKENIZER,
                    lengths=(length,),
                    tasks=(TASK,),
                    haystack=HAYSTACK,
                    samples=args.samples,
                ),
                prompts,
            )
            command = [sys.executable, __file__, "--one", str(prompts)]
            command += ["--samples", str(args.samples)]
            child = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            print(f"| {length:,} | {child.stdout.strip()} |", flush=True)


def measure(prompts: Path, samples: int) -> None:
    start = time.perf_counter()
    tokenizer = load_tokenizer(TOKENIZER)
    (prompt_set,) = open_prompt_sets(prompts, tokenizer)
    parent = Parent(role="checkpoint", location="none", identity="none")
    candidate = Candidate(
        role="checkpoint",
        method="",
        folder=TOKENIZER,
        parent=parent,
        held=HeldFiles(()),
        tokenizer=tokenizer,
    )
    engine = FakeEngine(lambda request: prompt_set.value(request.key.doc))
    out = prompts.parent / "out"
    found = NiahEvaluation(engine, candidate, samples, out).evaluate(prompt_set)
    if found.value != 1:
        raise RuntimeError(f"an engine that knows all answers scored {found.value}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{time.perf_counter() - start:.0f} | {peak / 1e9:.1f}")


if __name__ == "__main__":
    main()
