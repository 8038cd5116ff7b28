"""`make bench` replaces the sections that it measured, and keeps those written by hand."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "bench.py"


def test_measured_sections_replace_their_predecessors_and_others_stay() -> None:
    spec = importlib.util.spec_from_file_location("bench", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    old = (
        "# B\n\nold\n\n## One\n\n1\n\n### By hand\n\n```\n## no heading\n```\n\n## Hand\n\nh\n\n"
        "## Two\n\n2\n"
    )
    new = bench.updated(old, "# B\n\nnew\n", "## Two\n\n22\n\n## One\n\n11\n\n## Three\n\n3\n")
    assert new == (
        "# B\n\nnew\n\n## One\n\n11\n\n### By hand\n\n```\n## no heading\n```\n\n## Hand\n\nh\n\n"
        "## Two\n\n22\n\n## Three\n\n3\n"
    )
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    head, _, rest = page.partition("\n## ")
    assert bench.updated(page, f"{head.rstrip()}\n", "") == page
    assert rest


def test_every_benchmark_is_run() -> None:
    called = SCRIPT.read_text()
    # These need another machine, or another minute of a whole pipeline.
    others = {"bench_checkpoints.py", "bench_compile.py", "bench_dry_run.py"}
    scripts = {path.name for path in SCRIPT.parent.glob("bench_*.py")}
    assert {name for name in scripts if f'"{name}"' not in called} == others
