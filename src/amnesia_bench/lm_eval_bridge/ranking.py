"""Rank the softmax layers of a checkpoint by ablation (Appendix M): `rank_layers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import open_candidate
from amnesia_bench.inference.options import EngineOptions
from amnesia_bench.inference.progress_engine import silent
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.lm_eval_bridge.layer_ablation import (
    ABLATION,
    output_projections,
    without_attention,
)
from amnesia_bench.lm_eval_bridge.layer_ranking import measure_layers
from amnesia_bench.lm_eval_bridge.model import AmnesiaLM
from amnesia_bench.lm_eval_bridge.retrieval_tasks import accuracies, load_retrieval_tasks
from amnesia_bench.records.layer_ranking import LayerRanking
from amnesia_bench.requests.recall import RankLayersRequest
from amnesia_bench.weights.checkpoint import open_checkpoint


def rank_layers(
    request: RankLayersRequest, out: Path, *, progress: Callable[[str], None] = silent
) -> LayerRanking:
    """Rank the softmax layers of a checkpoint by leaving each out, and write the ranking.

    Args:
        request: the checkpoint and the tasks.
        out: the JSON file to write.
        progress: called with one line before each measurement.

    Raises:
        UserError: anything about the inputs is wrong, or `out` exists; nothing was written.
        BusyError: another process is writing `out`.
        StageFailedError: the checkpoint was changed meanwhile, or the disk is full; what was
            measured is kept.
        MissingEnvironmentError: the tasks' data cannot be fetched.
    """
    if out.exists():
        raise UserError(f"{out}: already exists", hint="Choose another file.")
    projections = output_projections(open_checkpoint(request.checkpoint))
    candidate = open_candidate(request.checkpoint, method="")
    tasks = load_retrieval_tasks(
        tuple(dict.fromkeys(request.tasks)), candidate.tokenizer, request.data
    )
    # Layers are ablated in this engine's own module: no other engine, and one process.
    engine = TransformersEngine.load(request.checkpoint, EngineOptions())
    lm = AmnesiaLM(engine, candidate.tokenizer)

    def measure(layer: int | None) -> Mapping[str, float]:
        progress("the whole model answers" if layer is None else f"without layer {layer}")
        ablation = (
            nullcontext() if layer is None else without_attention(engine.module, projections[layer])
        )
        with ablation:
            measured = accuracies(lm, tasks, request.samples)
        candidate.held.check()
        return measured

    plan = LayerRanking(
        checkpoint=candidate.parent,
        ablation=ABLATION,
        tasks=tuple(task.record(request.samples) for task in tasks),
        accuracy={},
        layers=(),
        settings=engine.settings,
    )
    return measure_layers(plan, sorted(projections), measure, out)
