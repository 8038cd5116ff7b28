"""Run every benchmark and write docs/benchmarks.md: python scripts/bench.py [--mergekit PATH]."""

import argparse
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from amnesia_bench.store.provenance import collect_provenance

ROOT = Path(__file__).resolve().parents[1]


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
        ["bench_seed_intervals.py"],
        ["bench_gate.py"],
        ["bench_niah.py"],
        ["bench_lm_eval.py"],
        ["bench_engines.py"],
        ["bench_decoding.py"],
        ["bench_scoring.py"],
        ["bench_sandbox.py"],
        ["bench_train.py"],
        ["bench_roofline.py"],
        ["bench_analysis.py"],
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
    texts = []
    for script, *arguments in sections:
        command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
        texts.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    path = ROOT / "docs" / "benchmarks.md"
    path.write_text(updated(path.read_text(), head, "\n".join(texts)))


def updated(old: str, head: str, measured: str) -> str:
    """Return the page with new sections in place of those with the same headings.

    Other sections are written by hand, for example because they need another machine, and stay
    where they are. New sections are appended.
    """
    sections = _sections(old) | _sections(measured)
    return "\n".join([head, *(text.strip("\n") + "\n" for text in sections.values() if text)])


def _sections(page: str) -> dict[tuple[str, str], str]:
    """Split a page at its headings of levels 2 and 3; return the texts by both headings.

    The text before the first heading is left out.
    """
    texts: dict[tuple[str, str], str] = {}
    key = ("", "")
    in_code = False
    for line in page.splitlines(keepends=True):
        in_code ^= line.startswith("```")
        if line.startswith("## ") and not in_code:
            key = (line, "")
        elif line.startswith("### ") and not in_code:
            key = (key[0], line)
        texts[key] = texts.get(key, "") + line
    texts.pop(("", ""), None)
    return texts


if __name__ == "__main__":
    main()
