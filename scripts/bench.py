"""Run every benchmark and write docs/benchmarks.md: python scripts/bench.py [--mergekit PATH]."""

import argparse
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from amnesia_bench.store.provenance import collect_provenance

ROOT = Path(__file__).resolve().parents[1]
KEPT = "<!-- `make bench` keeps what follows. -->\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mergekit", help="path of a mergekit-yaml to compare restores with")
    parser.add_argument("--folder", default="/tmp", help="where to put 14 GB of scratch files")
    args = parser.parse_args()
    mergekit = ["--mergekit", args.mergekit] if args.mergekit else []
    sections = [
        ["bench_cli.py"],
        ["bench_modeling.py"],
        ["bench_check.py"],
        ["bench_niah.py"],
        ["bench_lm_eval.py"],
        ["bench_engines.py"],
        ["bench_scoring.py"],
        ["bench_sandbox.py"],
        ["bench_train.py"],
        ["bench_roofline.py"],
        ["bench_restore.py", "--folder", args.folder, *mergekit],
    ]
    data = Path(os.environ.get("AMNESIA_SHARED") or ROOT.parent / "shared") / "data"
    if data.is_dir():
        inputs = ["--input", str(data / "gsm8k_train.jsonl")]
        sections.append(["bench_data.py", "--tokenizer", str(data / "qwen2_tokenizer"), *inputs])
    made = collect_provenance(["make", "bench"], seeds={})
    machine = made.hardware
    head = (
        "# Benchmarks\n\n"
        "These numbers come from the scripts that `make bench` runs, one after another on an "
        "otherwise idle\nmachine, unless a section states otherwise. No test depends on them.\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, commit {(made.commit or 'unknown')[:12]}"
        f"{' with local changes' if made.dirty else ''}. "
        f"{machine.cpu}, {machine.cpu_cores} cores, {machine.memory_bytes / 1e9:.0f} GB, "
        f"{machine.platform}, {', '.join(machine.gpus) or 'no GPU'}. Python {made.python}, "
        + ", ".join(f"{name} {version}" for name, version in made.packages.items())
        + ".\n"
    )
    texts = [head]
    for script, *arguments in sections:
        command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
        texts.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    path = ROOT / "docs" / "benchmarks.md"
    # The sections after this line are written by hand, since they need other machines.
    texts.append(KEPT + path.read_text().partition(KEPT)[2])
    path.write_text("\n".join(texts))


if __name__ == "__main__":
    main()
