"""A store with planted evaluations of an experiment, and a training, for tests of tracking."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.reporting import measured_part, report_calls
from amnesia_bench.reporting.building import report
from amnesia_bench.requests.recall import EvaluateRequest
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from tests.support.report_cells import METHODS, Accuracy, write_recall, write_scores

# The hardest recall and the reasoning score of each method, made up.
PLANTED = {
    "pre": (0.9, 0.05),
    "post": (0.3, 0.8),
    "qk": (0.75, 0.75),
    "qk_blend": (0.55, 0.8),
    "qk_low_rank": (0.65, 0.7),
}
STEPS = 20
VARIANTS = ("qk", "qk_blend", "qk_low_rank")
OVERRIDES = ("experiment=table1", "profile=tiny", f"restore={','.join(VARIANTS)}")


def plant(store: Path, *overrides: str, methods: Collection[str] = METHODS) -> None:
    """Write the evaluations of rows of experiments, and the trainings of their checkpoints."""
    for graph in graphs_of(overrides):
        for row in graph.rows:
            if row.method not in methods:
                continue
            variant = graph.job.config.restore.name
            hardest, score = PLANTED[variant if row.method == "restored" else row.method]
            for stage in row.measured:
                folder = stage.folder(store)
                if folder.is_dir():
                    continue
                if isinstance(stage.request, EvaluateRequest):
                    lengths = stage.request.lengths
                    accuracy = _falling(hardest, row.method == "pre")
                    write_recall(folder, row.method, accuracy, samples=20, lengths=lengths)
                else:
                    scores = write_scores(store / "new", row.method, {"gsm8k": score}, repeats=4)
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    (scores / "gsm8k").rename(folder)
            if row.checkpoint.kind == "trained" and not row.checkpoint.folder(store).is_dir():
                _train(row.checkpoint.folder(store))


def report_on(root: Path, *overrides: str) -> None:
    """Write the reports of the store in `root`."""
    graphs = graphs_of(overrides)
    for call in report_calls(graphs, root / "store", root / "results"):
        part = measured_part(call, "Weights are not measured.")
        report(part.request, part.out)


def _falling(hardest: float, flat: bool) -> Accuracy:
    return lambda task, length: hardest if flat else max(0.0, hardest - length / 20_000)


def _train(folder: Path) -> None:
    provenance = replace(collect_provenance(["amnesia", "test"], {}), commit="0" * 40)
    with publishing(folder) as work:
        lines = [{"step": step, "loss": 3 / step, "note": None} for step in range(1, STEPS + 1)]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (work.folder / "metrics.jsonl").write_text(text)
        (work.folder / "model.safetensors").write_bytes(b"weights")
        work.finish("trained", (), provenance)
